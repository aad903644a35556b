"""fp32 ONNX pieces -> int8 ones, by ONNX Runtime's own quantiser."""

from pathlib import Path

from hadskip_export.errors import EngineError, first_line, optional_import
from hadskip_export.exporters.silence import silenced

OPERATORS = ["MatMul", "Gemm"]
QUANTISED = ("layer", "full")  # gates decide near a threshold, embeddings are looked up, the head costs nothing


def is_quantised(piece: str) -> bool:
    """Whether an int8 engine has a file of its own for this piece; the others run as they are, in fp32."""
    return piece.startswith(QUANTISED)


def quantise(source: Path, out: Path) -> None:
    """Writes the int8 form of an ONNX file: weights int8 per output channel, activations uint8, scaled per call.

    Raises:
        EngineError: `onnx` is not installed, or the quantiser refuses the file.
    """
    optional_import("onnx", "train")
    quantization = optional_import("onnxruntime.quantization", "ort or ort-gpu")
    try:
        with silenced():
            quantization.quantize_dynamic(
                source,
                out,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},  # products of activations, as in attention, stay fp32
            )
    except Exception as error:  # it raises whatever went wrong inside it
        raise EngineError(f"{source}: onnxruntime cannot quantise it ({first_line(error)})") from error
