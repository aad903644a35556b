"""The engines for a GPU, whose device is the host: the same bindings, buffers, uploads and programs, which run
anywhere. What only a GPU has, CUDA graphs, is a plain loop here."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime

from hadskip_export.runtime.engines.cuda_memory import CudaDevice, DeviceMemory
from hadskip_export.runtime.engines.ort_cuda import OrtCudaEngine
from hadskip_export.runtime.engines.tensorrt import MOST_ROWS, TensorRtEngine
from hadskip_export.runtime.engines.torch_cuda import TorchCudaEngine

HOST = f"{__name__}:OrtHostEngine"
TORCH_HOST = f"{__name__}:TorchHostEngine"
TRT_HOST = f"{__name__}:TensorRtHostEngine"
ON_HOST = {"ort-host": HOST, "torch-host": TORCH_HOST, "trt-host": TRT_HOST}


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

    def _recorder(self):
        return PlainLoop()


class PlainLoop:
    """A `Recorder` that keeps steps as they are."""

    def __init__(self):
        self._order = threading.RLock()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        step()  # as a recorder does, before a call's inputs are there
        return step

    def conditional(self, start, layers: Sequence[Callable[[], None]], finish, on) -> Callable[[], None]:
        def run() -> None:
            start()
            done = 0
            for index, layer in enumerate(layers):
                runs = bool(on.margins[0, index] > on.terms[index]) and done < on.terms[len(layers)]
                on.ran[0, index] = runs
                done += runs
                if runs:
                    layer()
            finish()

        return run

    def in_order(self):
        return self._order

    def wait(self) -> None: ...


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
