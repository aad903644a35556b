"""The table of engines. An engine's library is imported only when a bundle is loaded with it, and what the engine is
built from only when one is built."""

import importlib
from dataclasses import dataclass

from hadskip_export.runtime.engines.base import PRECISIONS, Cut, Engine, EngineOptions, Piece, is_reduced
from hadskip_export.support.errors import EngineError


@dataclass(frozen=True)
class Registered:
    """Where an engine's two halves are, as `module:name`: what loads and runs it, and what it is built from."""

    engine: str
    target: str


def _registered(module: str, engine: str, target: str) -> Registered:
    package = "hadskip_export"
    return Registered(f"{package}.runtime.engines.{module}:{engine}", f"{package}.exporters.targets.{module}:{target}")


# To add an engine: a file here, a file in `exporters/targets/` (or one for both), and a line in this table.
ENGINES = {
    "ort": _registered("ort", "OrtEngine", "TARGET"),
    "ort-cuda": _registered("ort_cuda", "OrtCudaEngine", "TARGET"),
    "openvino": _registered("openvino", "OpenVinoEngine", "TARGET"),
    "torch-cuda": _registered("torch_cuda", "TorchCudaEngine", "TARGET"),
    "trt": _registered("tensorrt", "TensorRtEngine", "TENSORRT"),
    "trt-rtx": _registered("tensorrt", "TensorRtRtxEngine", "TENSORRT_RTX"),
}

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Cut",
    "Engine",
    "EngineOptions",
    "Piece",
    "built_elsewhere",
    "engine_class",
    "is_reduced",
    "runs_onnx",
]


def engine_class(name: str) -> type[Engine]:
    """
    Raises:
        EngineError: no such engine, or its library is not installed (the message names the extra).
    """
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].engine.partition(":")
    return getattr(importlib.import_module(module), attribute)


def runs_onnx(name: str) -> bool:
    """Whether an engine's files are ONNX files, which may refer to others; one that is not known might."""
    return name not in ENGINES or engine_class(name).reads == "onnx"


def built_elsewhere(name: str, versions: dict[str, str], chip: str) -> str | None:
    """Why what was built with these versions, for this chip, does not fit here; None if it does.

    Raises:
        EngineError: see `engine_class`.
    """
    engine = engine_class(name)
    if engine.portable or (versions, chip) == (engine.versions(), engine.chip()):
        return None
    built, here = (", ".join(map(" ".join, found.items())) for found in (versions, engine.versions()))
    return f"was built with {built} for {chip}, and here are {here} and {engine.chip()}"
