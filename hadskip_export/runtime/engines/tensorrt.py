"""TensorRT and TensorRT for RTX. This version builds their engines and does not run them yet."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadskip_export.errors import EngineError, optional_import
from hadskip_export.runtime.engines.base import EngineOptions, GateLayout, Piece, Single
from hadskip_export.runtime.engines.nvidia import device_name, why_no_device


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
NOT_RUN = "this version of hadskip-export builds engines of {name} and does not run them yet"


class _TensorRt:
    """See `Engine`."""

    name: str
    precisions = ("fp32", "fp16")
    portable = False
    reads = "plans"

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions): ...

    def load(self, piece: str) -> Piece:
        raise EngineError(NOT_RUN.format(name=self.name))

    @staticmethod
    def layouts(precision: str) -> tuple[GateLayout, ...]:
        return "separate", "lookahead"

    @staticmethod
    def singles(precision: str) -> tuple[Single, ...]:
        return ("chain",)

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
        return why_no_device() or NOT_RUN.format(name=cls.name)


class TensorRtEngine(_TensorRt):
    """TensorRT for all of NVIDIA's GPUs, tied to the one it was built on."""

    name = "trt"


class TensorRtRtxEngine(_TensorRt):
    """TensorRT for RTX, whose engines run on consumer GPUs from Turing on."""

    name = "trt-rtx"
