"""The table of engines. An engine's library is imported only when a bundle is loaded with it."""

import importlib

from hadskip_export.runtime.engines.base import Batches, Engine, EngineOptions, GateLayout, Piece, Single, is_reduced
from hadskip_export.support.errors import EngineError

# name -> module:class. To add an engine: one file here, one line there.
ENGINES = {
    "ort": "hadskip_export.runtime.engines.ort:OrtEngine",
    "ort-cuda": "hadskip_export.runtime.engines.ort_cuda:OrtCudaEngine",
    "openvino": "hadskip_export.runtime.engines.openvino:OpenVinoEngine",
    "torch-cuda": "hadskip_export.runtime.engines.torch_cuda:TorchCudaEngine",
    "trt": "hadskip_export.runtime.engines.tensorrt:TensorRtEngine",
    "trt-rtx": "hadskip_export.runtime.engines.tensorrt:TensorRtRtxEngine",
}

__all__ = [
    "ENGINES",
    "Batches",
    "Engine",
    "EngineOptions",
    "GateLayout",
    "Piece",
    "Single",
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
    module, _, attribute = ENGINES[name].partition(":")
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
