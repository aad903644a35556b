"""An engine that the package does not have, as whoever adds one would write it: this file, both halves in it, and the
line below it for the table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.exporters.targets.base import OnnxTarget
from hadskip_export.runtime.engines import EngineOptions, Piece, Registered
from hadskip_export.runtime.engines.ort import OrtEngine


class AddedEngine(OrtEngine):
    """ONNX Runtime by another name, which counts the calls of each piece."""

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        super().__init__(files, precision, options)
        self.calls: dict[str, int] = {}

    def load(self, piece: str) -> Piece:
        run = super().load(piece)
        self.calls[piece] = 0

        def counted(*inputs: np.ndarray) -> Any:
            self.calls[piece] += 1
            return run(*inputs)

        return counted

    @staticmethod
    def versions() -> dict[str, str]:
        return {"onnxruntime": "the added one"}

    @staticmethod
    def chip() -> str:
        return "any"


TARGET = OnnxTarget(
    precisions=("fp32",), cuts=("layers", "whole", "gates"), converts={}, fuses={"fp32": True}, whole_stem={}
)
LINE = Registered(f"{__name__}:AddedEngine", f"{__name__}:TARGET")
