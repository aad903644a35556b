"""PyTorch on an NVIDIA GPU: every piece is recorded once for each size of input, and the whole gated model runs layers
ahead of what the host knows of its gates (`ahead`).

The only part of the runtime that imports torch, in the files beside this one, once a bundle is loaded with it.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hadskip_export.runtime.engines.base import UNBOUNDED, EngineOptions, Piece
from hadskip_export.runtime.engines.nvidia import device_name, why_no_device
from hadskip_export.support.errors import EngineError, first_line, optional_import

if TYPE_CHECKING:
    import torch

    from hadskip_export.runtime.engines.torch_cuda.kernels import Kernels
    from hadskip_export.runtime.engines.torch_cuda.model import Model
    from hadskip_export.runtime.engines.torch_cuda.recorder import Recorder


class TorchCudaEngine:
    """See `Engine`. All pieces are in one file of weights, which whatever uses them shares on the device. The host
    computes nothing, so there is no pool of threads."""

    portable = True
    most_padding = UNBOUNDED
    reads = "weights"
    device = "cuda"

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        if lack := self.why_not_here():
            raise EngineError(f"torch-cuda: {lack}")
        self._files = files
        self._precision = precision
        self._models: dict[Path, Model] = {}
        self._lock = threading.Lock()

    def load(self, piece: str) -> Piece:
        from hadskip_export.runtime.engines.torch_cuda.model import Model
        from hadskip_export.runtime.engines.torch_cuda.pieces import open_piece

        file = self._files[piece]
        try:
            with self._lock:
                if file not in self._models:
                    self._models[file] = Model(file, self._precision, self.device, *self._means())
                return open_piece(self._models[file], piece)
        except EngineError:
            raise
        except Exception as error:  # of safetensors, of torch: no common base
            raise EngineError(f"{file}: torch {self.versions()['torch']} refuses it ({first_line(error)})") from error

    def close(self) -> None:
        """Lets go of weights, buffers and programs on the device, as far as no piece has them."""
        with self._lock:
            self._models.clear()

    def _means(self) -> "tuple[Recorder, Callable[[torch.dtype], Kernels]]":
        from hadskip_export.runtime.engines.torch_cuda.graphs import CudaGraphs
        from hadskip_export.runtime.engines.torch_cuda.kernels import CudaKernels

        return CudaGraphs(), CudaKernels

    @staticmethod
    def versions() -> dict[str, str]:
        optional_import("safetensors", "torch-cuda")
        return {"torch": optional_import("torch", "torch-cuda").__version__.partition("+")[0]}

    @staticmethod
    def chip() -> str:
        return device_name() if why_no_device() is None else "NVIDIA GPUs"

    @classmethod
    def why_not_here(cls) -> str | None:
        torch: Any = optional_import("torch", "torch-cuda")
        if lack := why_no_device():
            return lack
        return None if torch.cuda.is_available() else "this torch is one without CUDA; install one that has it"
