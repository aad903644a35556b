"""fp32 graphs -> int8 ones. Weights become int8 per output channel; who scales the activations, and when, is the
engine's affair: ONNX Runtime's dynamic quantiser by the tensor, OpenVINO by groups of each token."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.support.errors import EngineError, first_line, optional_import
from hadskip_export.support.files import scratch
from hadskip_export.support.silence import silenced

OPERATORS = ["MatMul", "Gemm"]
LARGEST = 127
TINY = 1e-12  # a channel of zeros has some scale too


def quantise(model: Any) -> Any:
    """The int8 form of a graph for ONNX Runtime, by its own quantiser: activations uint8, scaled per call.

    Raises:
        EngineError: `onnx` is not installed, or the quantiser refuses the graph.
    """
    onnx: Any = optional_import("onnx", "build")
    quantization: Any = optional_import("onnxruntime.quantization", "ort or ort-gpu")
    with silenced(), scratch() as folder, _temporary_files_in(folder):
        out = folder / "int8.onnx"
        try:
            quantization.quantize_dynamic(
                model,
                out,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},  # products of activations, as in attention, stay fp32
            )
            return onnx.load(out)
        except Exception as error:  # it raises whatever went wrong inside it, and what is written in C++ forgets why
            if shutil.disk_usage(folder).free < model.ByteSize():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise EngineError(f"onnxruntime cannot quantise {model.graph.name} ({first_line(error)})") from error


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Where the library writes its own, which it does not let anybody choose: there they go with the folder."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def quantise_weights(model: Any) -> Any:
    """The graph with int8 weights in its products, each followed by a `DequantizeLinear`: what OpenVINO takes for
    compressed weights, and multiplies in int8 by activations that it quantises itself."""
    onnx: Any = optional_import("onnx", "build")
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    added = []
    for name in dict.fromkeys(node.input[1] for node in graph.node if node.op_type in OPERATORS):
        if name not in weights:  # a product of activations
            continue
        node = next(node for node in graph.node if len(node.input) > 1 and node.input[1] == name)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        weight, axis = onnx.numpy_helper.to_array(weights[name]), 0 if transposed else 1
        scale = np.maximum(np.abs(weight).max(axis=1 - axis), TINY).astype(np.float32) / LARGEST
        whole = np.rint(weight / np.expand_dims(scale, 1 - axis)).astype(np.int8)
        graph.initializer.remove(weights[name])
        graph.initializer.append(onnx.numpy_helper.from_array(whole, f"{name}_int8"))
        graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_int8", f"{name}_scale"]
        added.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dequantise", axis=axis))
    for node in reversed(added):
        graph.node.insert(0, node)
    return model
