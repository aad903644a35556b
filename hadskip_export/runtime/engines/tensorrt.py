"""TensorRT and TensorRT for RTX: engines in an NVIDIA GPU's own machine code, run through one interface.

No torch: memory and the stream come from CUDA's runtime. hidden_states stay on the device from piece to piece; only
margins and logits come back. A batch whose rows part ways goes through the host.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.runtime.engines.base import UNBOUNDED, EngineOptions, Piece
from hadskip_export.runtime.engines.cuda_memory import CudaDevice, DeviceMemory
from hadskip_export.runtime.engines.device import DeviceArray, Uploads
from hadskip_export.runtime.engines.nvidia import compute_capability, device_name, why_no_device
from hadskip_export.support.errors import EngineError, first_line, optional_import


@dataclass(frozen=True)
class Library:
    """
    Args:
        module: the Python package.
        builds_on_device: it needs the GPU that will run the engine; the other one builds for all that it supports.
    """

    module: str
    builds_on_device: bool


LIBRARIES = {"trt": Library("tensorrt", True), "trt-rtx": Library("tensorrt_rtx_bindings", False)}
MOST_ROWS = 32  # rows of the largest call that engines are built for; `Predictor` makes none larger unless asked to


class _TensorRt:
    """See `Engine`. Pieces run one at a time and share one scratch buffer, as large as the largest needs."""

    name: str
    portable = False
    most_padding = UNBOUNDED
    reads = "plans"

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        if lack := self.why_not_here():
            raise EngineError(f"{self.name}: {lack}")
        self._files = files
        self._device = self._open_device()
        self._uploads = Uploads(self._device.upload)
        self._scratch = Scratch(self._device)

    def load(self, piece: str) -> Piece:
        file = self._files[piece]
        plan = self._read(file)
        if plan is None:
            library = next(iter(self.versions().items()))
            raise EngineError(f"{file}: {' '.join(library)} refuses it (its own messages above say why)")
        self._scratch.grow(plan.device_memory_size_v2)
        context = plan.create_execution_context(self._user_managed())
        if context is None:
            raise EngineError(f"{file}: TensorRT cannot prepare it; is there memory left on the GPU?")
        return TensorRtPiece(plan, context, file, self._uploads, self._scratch)

    def close(self) -> None:
        """Gives the scratch buffer back; pieces go with whoever has them."""
        self._scratch = Scratch(self._device)

    def _open_device(self) -> CudaDevice:
        return CudaDevice(self.name)

    @cached_property
    def _library(self) -> Any:
        return optional_import(LIBRARIES[self.name].module, self.name)

    @cached_property
    def _runtime(self) -> Any:
        return self._library.Runtime(self._library.Logger(self._library.Logger.ERROR))

    def _read(self, file: Path) -> Any:
        return self._runtime.deserialize_cuda_engine(file.read_bytes())

    def _user_managed(self) -> Any:
        return self._library.ExecutionContextAllocationStrategy.USER_MANAGED

    @classmethod
    def versions(cls) -> dict[str, str]:
        library: Any = optional_import(LIBRARIES[cls.name].module, cls.name)
        version = getattr(library, "__version__", None) or library.tensorrt_rtx.__version__
        return {cls.name: version, "system": f"{platform.system()} {platform.machine()}"}

    @classmethod
    def chip(cls) -> str:
        return device_name() if LIBRARIES[cls.name].builds_on_device else "NVIDIA GPUs from Turing on"

    @classmethod
    def why_not_here(cls) -> str | None:
        return why_no_device()


class TensorRtEngine(_TensorRt):
    """TensorRT for all of NVIDIA's GPUs, tied to the one it was built on."""

    name = "trt"


class TensorRtRtxEngine(_TensorRt):
    """TensorRT for RTX, whose engines run on consumer GPUs from Turing on."""

    name = "trt-rtx"

    @classmethod
    def why_not_here(cls) -> str | None:
        if lack := why_no_device():
            return lack
        chip = "SM{}{}".format(*compute_capability())
        known = optional_import(LIBRARIES[cls.name].module, cls.name).ComputeCapability.__members__
        return None if chip in known else f"TensorRT for RTX does not know this chip ({chip}); use --engine trt"


class Scratch:
    """What a piece computes in, one for all."""

    def __init__(self, device: CudaDevice):
        self.device = device
        self._memory: DeviceMemory | None = None
        self.size = 0

    def grow(self, size: int) -> None:
        with self.device.lock:
            if size > self.size:
                self._memory, self.size = DeviceMemory(self.device, (size,), np.dtype(np.uint8)), size

    @property
    def pointer(self) -> int:
        return 0 if self._memory is None else self._memory.pointer


class TensorRtPiece:
    """One engine and its execution context. Outputs [b, s, H] stay on the device."""

    def __init__(self, plan: Any, context: Any, file: Path, uploads: Uploads, scratch: Scratch):
        self._plan = plan  # its context does not keep it
        self._context = context
        self._file, self._device, self._uploads, self._scratch = file, scratch.device, uploads, scratch
        names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
        self._inputs = [name for name in names if plan.get_tensor_mode(name).name == "INPUT"]
        self._outputs = [name for name in names if plan.get_tensor_mode(name).name == "OUTPUT"]

    def __call__(self, *inputs: Any) -> Any:
        try:
            with self._device.lock:
                values = self._run(inputs)
            outputs = [DeviceArray(value) if len(value.shape()) == 3 else value.numpy() for value in values]
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise EngineError(f"{self._file}: {first_line(error)}") from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _run(self, inputs: Sequence[Any]) -> list[DeviceMemory]:
        context = self._context
        held = []  # until it is enqueued what reads them: memory is given back in the stream's order
        for name, given in zip(self._inputs, inputs, strict=True):
            value: Any = given.on_device if isinstance(given, DeviceArray) else None
            value = self._uploads(np.asarray(given)) if value is None else value
            held.append(value)
            if value.dtype != _NUMPY[self._plan.get_tensor_dtype(name).name]:
                raise ValueError(f"{name} is {value.dtype}")
            shape = tuple(value.shape())
            if not context.set_input_shape(name, shape):
                raise ValueError(f"{name} {shape} is not what it was built for; at most {MOST_ROWS} rows")
            context.set_tensor_address(name, value.pointer)
        outputs = []
        for name in self._outputs:
            dtype = _NUMPY[self._plan.get_tensor_dtype(name).name]
            outputs.append(DeviceMemory(self._device, tuple(context.get_tensor_shape(name)), dtype))
            context.set_tensor_address(name, outputs[-1].pointer)
        context.set_device_memory(self._scratch.pointer, self._scratch.size)
        if not context.execute_async_v3(self._device.stream):
            raise RuntimeError("TensorRT did not run it; its own messages above say why")
        return outputs


_NUMPY: dict[str, np.dtype] = {"FLOAT": np.dtype(np.float32), "INT64": np.dtype(np.int64)}
