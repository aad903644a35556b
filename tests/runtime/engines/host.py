"""The engines for a GPU, whose device is the host: the same bindings, buffers, uploads and programs, which run
anywhere. What only a GPU has, CUDA graphs, are plain functions here."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.exporters.targets.base import OnnxTarget
from hadskip_export.runtime.engines import ENGINES, Registered
from hadskip_export.runtime.engines.cuda_memory import CudaDevice, DeviceMemory
from hadskip_export.runtime.engines.ort_cuda import OrtCudaEngine
from hadskip_export.runtime.engines.tensorrt import MOST_ROWS, TensorRtEngine
from hadskip_export.runtime.engines.torch_cuda import TorchCudaEngine
from hadskip_export.runtime.engines.torch_cuda.lane import Lane
from hadskip_export.runtime.engines.torch_cuda.layers import Part, attention_bias, embeddings, logits, margins

# Lines for the table of engines: those of this file, with targets of the engines that they stand for. TensorRT's plans
# are graphs here.
HOST_PLANS = OnnxTarget(("fp32",), ("layers", "gates"), converts={}, fuses={"fp32": False}, whole_stem={})
ON_HOST = {
    "ort-host": Registered(f"{__name__}:OrtHostEngine", ENGINES["ort-cuda"].target),
    "torch-host": Registered(f"{__name__}:TorchHostEngine", ENGINES["torch-cuda"].target),
    "trt-host": Registered(f"{__name__}:TensorRtHostEngine", f"{__name__}:HOST_PLANS"),
}


class OnHost:
    """What no engine for the host lacks."""

    @classmethod
    def chip(cls) -> str:
        return "host"

    @classmethod
    def why_not_here(cls) -> str | None:
        return None


class OrtHostEngine(OnHost, OrtCudaEngine):
    provider, device, settings = "CPUExecutionProvider", "cpu", {}


class TorchHostEngine(OnHost, TorchCudaEngine):
    device = "cpu"

    def _means(self):
        return PlainLoop(), lambda dtype: TorchKernels()


class PlainLoop:
    """A `Recorder` that keeps steps as they are."""

    def __init__(self):
        self._order = threading.RLock()
        self._apart = False

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        step()  # as a recorder does, before a call's inputs are there
        return step

    @contextmanager
    def parted(self):
        assert not self._apart
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def beside(self):
        assert self._apart
        return nullcontext()

    def alone(self):
        return self._order

    @contextmanager
    def in_order(self):
        with self._order, torch.inference_mode(False):
            yield

    def wait(self) -> None: ...

    def at_rest(self) -> bool:
        return True


class TorchKernels:
    """`Kernels` by the plainest means."""

    def add_norm(self, part: Part, name: str, one: Tensor, other: Tensor) -> Tensor:
        weight, bias = part.weights[f"{name}.weight"].float(), part.weights[f"{name}.bias"].float()
        return F.layer_norm(one.float() + other.float(), weight.shape, weight, bias, part.eps).to(one.dtype)

    def begin(self, part: Part, lane: Lane) -> None:
        ids, types, mask = lane.sent_ids.to(lane.states.device)
        lane.states.copy_(embeddings(part, ids, types))
        lane.mask.copy_(mask)
        lane.bias.copy_(attention_bias(mask, lane.bias.dtype))
        lane.terms.copy_(lane.sent_terms)
        lane.ran.zero_()
        lane.at.fill_(-1)
        lane.done.zero_()
        lane.count.zero_()

    def decide(self, part: Part, lane: Lane, layer: int, num_slots: int) -> None:
        rows, num_layers = lane.ran.shape
        lane.margins.copy_(margins(part, lane.states.float(), lane.mask.long()))
        fires = lane.margins > lane.terms[:, :num_layers]

        def following(row: int, at: int, left: float) -> int:
            return next((index for index in range(at + 1, num_layers) if left > 0 and fires[row, index]), num_layers)

        for row in range(rows):
            left = float(lane.terms[row, num_layers]) - int(lane.done[row])
            lane.next[row] = lane.planned[row] = following(row, int(lane.at[row]), left)
        for slot in range(num_slots):
            row = int(lane.slots[slot])
            lane.writes[slot] = row >= 0 and int(lane.next[row]) == layer
            if lane.writes[slot]:
                lane.at[row], lane.ran[row, layer] = layer, 1
                lane.done[row] += 1
                lane.planned[row] = following(row, layer, float(lane.terms[row, num_layers]) - int(lane.done[row]))
        first = int(lane.planned.min())
        rows_of_it = (lane.planned == first).nonzero()[:, 0]
        lane.listed.fill_(-1)
        lane.listed[: len(rows_of_it)] = rows_of_it
        lane.count += 1
        lane.report[0], lane.report[1] = first | len(rows_of_it) << 16, lane.count[0]

    def gather(self, lane: Lane, num_slots: int) -> tuple[Tensor, Tensor]:
        lane.slots[:num_slots].copy_(lane.listed[:num_slots])
        rows = lane.slots[:num_slots].clamp(min=0)
        return lane.states[rows], lane.bias[rows]

    def reply(self, part: Part, states: Tensor, lane: Lane) -> None:
        lane.answer.copy_(torch.cat([logits(part, states[:, :1].float()), lane.ran], dim=1))

    def replace(self, part: Part, name: str, one: Tensor, other: Tensor, lane: Lane) -> None:
        new = self.add_norm(part, name, one, other)
        for slot in range(len(one)):
            if lane.writes[slot]:
                lane.states[int(lane.slots[slot]), : new.shape[1]] = new[slot]


class TensorRtHostEngine(OnHost, TensorRtEngine):
    """Plans are ONNX files that ONNX Runtime computes, behind the part of TensorRT's interface that is used: addresses
    in, addresses out."""

    reads = "onnx"
    portable = True

    def _open_device(self) -> CudaDevice:
        return HostDevice()

    def _read(self, file: Path):
        try:
            return HostPlan(file)
        except Exception:  # TensorRT gives nothing and says why on its own
            return None

    def _user_managed(self) -> str:
        return "USER_MANAGED"

    @staticmethod
    def versions() -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}


class HostDevice(CudaDevice):
    """Memory that is written over before it is given back, so that whoever reads it later reads nonsense."""

    def __init__(self):
        self.stream, self.lock, self.held = 1, threading.Lock(), {}

    def take(self, size: int) -> int:
        memory = np.full(max(1, size), 0xFF, np.uint8)
        self.held[memory.ctypes.data] = memory
        return memory.ctypes.data

    def give_back(self, pointer: int) -> None:
        self.held.pop(pointer)[:] = 0xFF

    def upload(self, array: np.ndarray) -> DeviceMemory:
        memory = DeviceMemory(self, array.shape, array.dtype)
        ctypes.memmove(memory.pointer, array.ctypes.data, array.nbytes)
        return memory

    def download(self, memory: DeviceMemory) -> np.ndarray:
        array = np.empty(memory.shape(), memory.dtype)
        ctypes.memmove(array.ctypes.data, memory.pointer, array.nbytes)
        return array


class HostPlan:
    device_memory_size_v2 = 4096

    def __init__(self, file: Path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        ins, outs = self.session.get_inputs(), self.session.get_outputs()
        self.tensors = {one.name: ("INPUT", one) for one in ins} | {one.name: ("OUTPUT", one) for one in outs}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str):
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_dtype(self, name: str):
        kind = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}[self.tensors[name][1].type]
        return SimpleNamespace(name=kind)

    def create_execution_context(self, strategy: str) -> "HostContext":
        assert strategy == "USER_MANAGED"
        return HostContext(self)


class HostContext:
    def __init__(self, plan: HostPlan):
        self.plan, self.shapes, self.addresses = plan, {}, {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self.plan.tensors[name][1].shape
        fits = len(shape) == len(declared) and shape[0] <= MOST_ROWS
        self.shapes[name] = shape
        return fits and all(isinstance(want, str) or want == got for want, got in zip(declared, shape, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {}
        for given, shape in self.shapes.items():
            sizes |= dict(zip(self.plan.tensors[given][1].shape, shape, strict=True))
        return tuple(sizes.get(size, size) for size in self.plan.tensors[name][1].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert pointer and size >= self.plan.device_memory_size_v2
        ctypes.memset(pointer, 0, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream  # never the default one
        feed = {}
        for name, shape in self.shapes.items():
            kind = np.float32 if self.plan.get_tensor_dtype(name).name == "FLOAT" else np.int64
            feed[name] = array = np.empty(shape, kind)
            ctypes.memmove(array.ctypes.data, self.addresses[name], array.nbytes)
        names = [name for name, (mode, _) in self.plan.tensors.items() if mode == "OUTPUT"]
        for name, output in zip(names, self.plan.session.run(names, feed), strict=True):
            assert output.shape == self.get_tensor_shape(name)
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(output).ctypes.data, output.nbytes)
        return True
