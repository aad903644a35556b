"""ONNX Runtime on an NVIDIA GPU. Runs the same files as on the CPU.

hidden_states stay on the device from piece to piece; only margins and logits come back, so a layer that runs costs one
read. A batch whose rows part ways goes through the host: the chain takes rows out and puts them back there.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hadskip_export.errors import EngineError, first_line
from hadskip_export.runtime.engines.base import EngineOptions, Piece
from hadskip_export.runtime.engines.nvidia import device_name, why_no_device
from hadskip_export.runtime.engines.ort import OnnxRuntime, import_onnxruntime, open_session


class OrtCudaEngine(OnnxRuntime):
    """See `Engine`. The precision is in the files; the host computes nothing, so there is no pool of threads."""

    precisions = ("fp32", "fp16")
    portable = True
    provider, device = "CUDAExecutionProvider", "cuda"
    settings: ClassVar[dict[str, str]] = {"use_tf32": "0"}  # on by default: fp32 would not be fp32

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        if lack := self.why_not_here():
            raise EngineError(f"ort-cuda: {lack}")
        self._ort = import_onnxruntime()
        self._files = files
        self._uploads = Uploads(self._ort, self.device)

    def load(self, piece: str) -> Piece:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a pool for each session would only spin
        options.log_severity_level = 3
        session = open_session(self._ort, self._files[piece], options, self.provider, self.settings)
        return BoundPiece(session, self._files[piece], self._uploads, self.device)

    @staticmethod
    def chip() -> str:
        return device_name() if why_no_device() is None else "NVIDIA GPUs"

    @classmethod
    def why_not_here(cls) -> str | None:
        if cls.provider not in import_onnxruntime().get_available_providers():
            return "this onnxruntime is the one for the CPU; uninstall it and install hadskip-export[ort-gpu]"
        return why_no_device()


class DeviceArray:
    """hidden_states on a device, float32 [b, s, H], as the chain uses an array: given whole to the next piece they stay
    there; whoever takes rows out, or puts rows in, moves them to the host."""

    def __init__(self, value: Any):
        self._value = value  # an OrtValue, or a NumPy array once rows were put in

    def __len__(self) -> int:
        return len(self._value) if isinstance(self._value, np.ndarray) else self._value.shape()[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self._value if isinstance(self._value, np.ndarray) else self._value.numpy()
        return np.asarray(found, dtype) if copy is False else np.array(found, dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._on_host()[rows]

    def __setitem__(self, rows: Any, new: Any) -> None:
        self._on_host()[rows] = new

    def _on_host(self) -> np.ndarray:
        if not isinstance(self._value, np.ndarray):
            self._value = np.array(self._value.numpy())  # what it gives may be the device's own memory, and read-only
        return self._value

    @property
    def on_device(self) -> Any:
        """The OrtValue; None if the host has the array."""
        return None if isinstance(self._value, np.ndarray) else self._value


class Uploads:
    """Arrays on their way to the device. The mask goes there once a call, not once a piece: each thread keeps its last
    one for as long as pieces are given the same array."""

    def __init__(self, ort: Any, device: str):
        self._ort = ort
        self._device = device
        self._last = threading.local()

    def __call__(self, array: np.ndarray) -> Any:
        keep = array.dtype == np.int64
        if keep and getattr(self._last, "array", None) is array:
            return self._last.value
        value = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
        if keep:
            self._last.array, self._last.value = array, value
        return value


class BoundPiece:
    """One session with its inputs and outputs bound where they are. Outputs [b, s, H] stay on the device."""

    def __init__(self, session: Any, file: Path, uploads: Uploads, device: str):
        self._session = session
        self._file = file
        self._uploads = uploads
        self._inputs = [argument.name for argument in session.get_inputs()]
        self._outputs = {
            argument.name: device if len(argument.shape) == 3 else "cpu" for argument in session.get_outputs()
        }

    def __call__(self, *inputs: Any) -> Any:
        try:
            binding = self._session.io_binding()
            for name, given in zip(self._inputs, inputs, strict=True):
                value = given.on_device if isinstance(given, DeviceArray) else None
                binding.bind_ortvalue_input(name, self._uploads(np.asarray(given)) if value is None else value)
            for name, device in self._outputs.items():
                binding.bind_output(name, device)
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise EngineError(f"{self._file}: {first_line(error)}") from error
        outputs = [DeviceArray(value) if len(value.shape()) == 3 else value.numpy() for value in values]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
