"""ONNX Runtime on the CPU. Its whole model is a plain ONNX file by a name that other programs look for."""

from hadskip_export.exporters.quantise import quantise
from hadskip_export.exporters.targets.base import OnnxTarget

TARGET = OnnxTarget(
    precisions=("fp32", "int8"),
    cuts=("whole", "layers", "gates"),
    converts={"int8": quantise},
    fuses={"fp32": True, "int8": True},
    whole_stem={"fp32": "model", "int8": "model_int8"},
    whole_exits=("fp32", "int8"),
)
