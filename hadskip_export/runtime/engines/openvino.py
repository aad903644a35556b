"""OpenVINO on the CPU. Compiles the ONNX pieces when they are loaded, a tenth of a second for a layer of BERT-base.

Two facts, both measured (docs/performance.md), shape this file. A compiled piece keeps scratch memory for the largest
call it has seen, so twelve layers would hold twelve times as much as full BERT does: large calls are made in parts, and
the memory for a part is given back. And bf16 is a wish: a chip without it computes in fp32 and says so only when asked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.errors import EngineError, first_line, optional_import
from hadskip_export.runtime.engines.base import EngineOptions, GateLayout, OnThisProcessor, Piece, Single, is_reduced

MOST_TOKENS = 1024  # computed at once; more at once is up to 5 % faster and takes 24 kB a token and layer
GROUP = 128  # channels of a token that share a scale in int8; 32 is a fifth slower and a tenth nearer
_SMALL = ("gate_", "head")  # pieces too small to share between threads; all gates in one are not


class OpenVinoEngine(OnThisProcessor):
    """See `Engine`. Its threads do not spin, whatever the options say."""

    precisions = ("fp32", "bf16", "int8")
    reads = "onnx"

    def __init__(self, files: Mapping[str, Path], precision: str, options: EngineOptions):
        self._openvino = optional_import("openvino", "openvino")
        self._core = self._openvino.Core()
        self._files = files
        self._precision = precision
        self._options = options

    def load(self, piece: str) -> Piece:
        file = self._files[piece]
        wanted = "bf16" if self._precision == "bf16" and is_reduced(piece) else "f32"
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1 if piece.startswith(_SMALL) else self._options.thread_count,
            "INFERENCE_PRECISION_HINT": wanted,
        }
        if self._precision == "int8" and is_reduced(piece):
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
        try:
            compiled = self._core.compile_model(str(file), "CPU", settings)
            used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except RuntimeError as error:
            raise EngineError(f"{file}: openvino {self._openvino.__version__} refuses it ({_reason(error)})") from error
        if used != wanted:
            raise EngineError(f"{file}: this chip computes {wanted} as {used}; use --engine openvino-fp32 here")
        return OpenVinoPiece(self._openvino, compiled, file)

    @staticmethod
    def layouts(precision: str) -> tuple[GateLayout, ...]:
        # In bf16 a piece is computed in bf16 to the last of its operators, and gates decide in fp32.
        return ("lookahead", "separate") if precision == "bf16" else ("fused", "separate", "lookahead")

    @staticmethod
    def singles(precision: str) -> tuple[Single, ...]:
        # In bf16 the gates of a guess would be bf16; those of the graph are made such that they are not.
        return ("graph", "chain") if precision == "bf16" else ("graph", "chain", "guess")

    @staticmethod
    def versions() -> dict[str, str]:
        version = optional_import("openvino", "openvino").__version__
        return {"openvino": version.partition("-")[0]}  # without its build number and branch


class OpenVinoPiece:
    """A compiled model and its infer requests. One request serves one call at a time, so each call takes an idle one
    or makes another. Inputs are read, and outputs are written, where the arrays lie: nothing is copied."""

    def __init__(self, openvino: Any, compiled: Any, file: Path):
        self._tensor = openvino.Tensor
        self._compiled = compiled
        self._file = file
        self._inputs = range(len(compiled.inputs))
        self._shapes = [
            [dimension.get_length() if dimension.is_static else None for dimension in output.get_partial_shape()]
            for output in compiled.outputs
        ]
        self._idle: list[Any] = []  # pop and append are atomic

    def __call__(self, *inputs: np.ndarray) -> Any:
        arrays = [np.ascontiguousarray(array) for array in inputs]
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            rows, length = arrays[0].shape[:2]
            # What of an output's shape is not fixed is the batch, then the length, as in every input.
            outputs = [
                np.empty([size or arrays[0].shape[axis] for axis, size in enumerate(shape)], np.float32)
                for shape in self._shapes
            ]
            step = max(1, MOST_TOKENS // length)
            for part in (slice(first, first + step) for first in range(0, rows, step)):
                for index, array in zip(self._inputs, arrays, strict=True):
                    request.set_input_tensor(index, self._tensor(array[part], shared_memory=True))
                for index, output in enumerate(outputs):
                    request.set_output_tensor(index, self._tensor(output[part], shared_memory=True))
                request.infer()
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineError(f"{self._file}: {_reason(error)}") from error
        self._idle.append(request)
        if rows > step:
            self._compiled.release_memory()
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _reason(error: Exception) -> str:
    """The last line of its message that says something: the first ones are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
