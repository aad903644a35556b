"""fp32 graphs -> int8 ones. Weights become int8 per output channel; who scales the activations, and when, is the
engine's affair: ONNX Runtime's dynamic quantiser by the tensor, OpenVINO by groups of each token.

In a layer's feed-forward network the first and the last token often have activations ten to thirty times as large as
the others' (Sun et al., "Massive Activations in Large Language Models", 2024). One scale for all leaves the others few
steps of int8. So there each token is brought to the same size before (`evened_out`).
"""

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
TINY = 1e-12  # a channel of zeros has some scale too, and so has a token
LAST_AXIS, LEAST_SCALE = "last_axis", "least_scale"  # constants of a graph that was evened out


def quantise(model: Any) -> Any:
    """The int8 form of a graph for ONNX Runtime, by its own quantiser, evened out before: activations uint8, scaled per
    call.

    Raises:
        EngineError: `onnx` is not installed, or the quantiser refuses the graph.
    """
    onnx: Any = optional_import("onnx", "build")
    quantization: Any = optional_import("onnxruntime.quantization", "ort or ort-gpu")
    evened = evened_out(model)
    with silenced(), scratch() as folder, _temporary_files_in(folder):
        out = folder / "int8.onnx"
        try:
            quantization.quantize_dynamic(
                evened,
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


def evened_out(model: Any) -> Any:
    """The graph with each product of weights that reads more channels than it gives, which is a feed-forward network's
    second, in between: what it reads is divided by each token's largest number, and what it gives multiplied by that.
    """
    onnx: Any = optional_import("onnx", "build")
    make_node, from_array = onnx.helper.make_node, onnx.numpy_helper.from_array
    evened = onnx.ModelProto()
    evened.CopyFrom(model)
    graph = evened.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    narrowing = {name for name, shape in shapes.items() if len(shape) == 2 and shape[0] > shape[1]}
    del graph.node[:]
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in narrowing:
            graph.node.append(node)
            continue
        (given, weight), (wanted,) = node.input, node.output
        sizes, largest, scale, even, product = (
            f"{wanted}_{part}" for part in ("sizes", "largest", "scale", "even", "product")
        )
        graph.node.extend(
            [
                make_node("Abs", [given], [sizes], sizes),
                make_node("ReduceMax", [sizes, LAST_AXIS], [largest], largest, keepdims=1),
                make_node("Max", [largest, LEAST_SCALE], [scale], scale),
                make_node("Div", [given, scale], [even], even),
                make_node("MatMul", [even, weight], [product], node.name),
                make_node("Mul", [product, scale], [wanted], f"{wanted}_uneven"),
            ]
        )
    if len(graph.node) > len(model.graph.node):
        graph.initializer.append(from_array(np.array([-1], np.int64), LAST_AXIS))
        graph.initializer.append(from_array(np.array(TINY, np.float32), LEAST_SCALE))
    return evened


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
