"""ONNX Runtime on an NVIDIA GPU. Runs the same files as on the CPU.

hidden_states stay on the device from piece to piece; only margins and logits come back, so a layer that runs costs one
read. A batch whose rows part ways goes through the host: the chain takes rows out and puts them back there.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hadskip_export.runtime.engines.base import UNBOUNDED, EngineOptions, Piece
from hadskip_export.runtime.engines.device import DeviceArray, Uploads
from hadskip_export.runtime.engines.nvidia import device_name, why_no_device
from hadskip_export.runtime.engines.ort import OnnxRuntime, import_onnxruntime, open_session
from hadskip_export.support.errors import EngineError, first_line


class OrtCudaEngine(OnnxRuntime):
    """See `Engine`. The precision is in the files; the host computes nothing, so there is no pool of threads."""

    portable = True
    most_padding = UNBOUNDED
    provider, device = "CUDAExecutionProvider", "cuda"
    settings: ClassVar[dict[str, str]] = {"use_tf32": "0"}  # on by default: fp32 would not be fp32

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        if lack := self.why_not_here():
            raise EngineError(f"ort-cuda: {lack}")
        self._ort = import_onnxruntime()
        with redirect_stdout(sys.stderr):  # it prints what it does not find, and stdout is the caller's
            self._ort.preload_dlls()  # CUDA and cuDNN as pip installed them: the loader does not look there
        self._files = files
        self._uploads = Uploads(lambda array: self._ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))

    def load(self, piece: str) -> Piece:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a pool for each session would only spin
        options.log_severity_level = 3
        session = open_session(self._ort, self._files[piece], options, self.provider, self.settings)
        return BoundPiece(session, self._files[piece], self._uploads, self.device)

    def close(self) -> None:
        """Nothing is kept beside the pieces, which go with whoever has them."""

    @staticmethod
    def chip() -> str:
        return device_name() if why_no_device() is None else "NVIDIA GPUs"

    @classmethod
    def why_not_here(cls) -> str | None:
        if cls.provider not in import_onnxruntime().get_available_providers():
            return "this onnxruntime is the one for the CPU; uninstall it and install hadskip-export[ort-gpu]"
        return why_no_device()


class BoundPiece:
    """One session with its inputs and outputs bound where they are. Outputs [b, s, H] stay on the device."""

    def __init__(self, session: Any, file: Path, uploads: Uploads, device: str):
        self._session = session
        self._file = file
        self._uploads = uploads
        self._inputs = [argument.name for argument in (*session.get_inputs(), *session.get_overridable_initializers())]
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
