"""ONNX Runtime on an NVIDIA GPU, from the same graphs as on the CPU."""

from hadskip_export.exporters.half import halved
from hadskip_export.exporters.targets.base import OnnxTarget

TARGET = OnnxTarget(
    precisions=("fp32", "fp16"),
    cuts=("layers", "gates", "whole"),
    converts={"fp16": halved},
    fuses={"fp32": True, "fp16": True},
    whole_stem={},
)
