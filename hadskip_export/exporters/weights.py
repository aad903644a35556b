"""ONNX pieces -> one safetensors file of their weights, for an engine that has the layers' code itself.

The exporter folds and shares weights and drops their names, so they are found by their place in the graph: linear
maps, normalisations and tables come in the order in which the model computes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.support.errors import EngineError, first_line, optional_import

LINEAR = {
    "embeddings": (),
    "layer": ("query_key_value", "attention_output", "up", "down"),
    "gate": ("hidden", "margins"),
    "head": ("pooler", "classifier"),
}
NORMS = {"embeddings": ("norm",), "layer": ("attention_norm", "output_norm"), "gate": (), "head": ()}
TABLES = {"input_ids": "word", "token_type_ids": "segment"}  # the third one is looked up by position


def pack(pieces: Mapping[str, Path], num_layers: int, out: Path) -> None:
    """Writes the weights of all pieces in fp32, `layer_01.up.weight` [out, in] and so on, full BERT's under `full.`.
    The file's metadata are `num_layers`, `num_heads`, `eps` and `activation`.

    Args:
        pieces: ONNX file of each piece.

    Raises:
        EngineError: `onnx` or `safetensors` is not installed, or the files are not what they should be.
    """
    onnx: Any = optional_import("onnx", "build")
    safetensors: Any = optional_import("safetensors.numpy", "torch-cuda")
    weights: dict[str, np.ndarray] = {}
    said = {"num_layers": str(num_layers)}
    for piece, file in pieces.items():
        try:
            graph = onnx.load(file).graph
            weights |= {f"{piece}.{name}": array for name, array in _found(graph, piece, num_layers)}
            if piece.startswith("layer"):
                said |= _shape(graph, onnx.numpy_helper)
        except Exception as error:  # protobuf's and onnx's own exceptions have no common base
            raise EngineError(f"{file}: its weights cannot be told apart ({first_line(error)})") from error
    safetensors.save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, out, metadata=said)


def _found(graph: Any, piece: str, num_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of a piece by the names that they bear in the file."""
    layers = [f"layer_{number:02d}." for number in range(1, num_layers + 1)]
    parts = ["embeddings.", *layers, "head."] if piece == "full" else [""]
    kinds = [next(kind for kind in LINEAR if (part or piece).startswith(kind)) for part in parts]
    named = list(zip(parts, kinds, strict=True))
    weights = arrays_of(graph)
    linear = [part + name for part, kind in named for name in LINEAR[kind]]
    for name, (weight, bias) in zip(linear, _joined(linear, linear_maps(graph, weights)), strict=True):
        yield f"{name}.weight", weight
        yield f"{name}.bias", bias
    nodes = [node for node in graph.node if node.op_type == "LayerNormalization" and len(node.input) == 3]
    norms = [part + name for part, kind in named for name in NORMS[kind]]
    for name, node in zip(norms, nodes, strict=True):
        yield f"{name}.weight", weights[node.input[1]]
        yield f"{name}.bias", weights[node.input[2]]
    prefix = "embeddings." if piece == "full" else ""
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in weights:
            yield f"{prefix}{TABLES.get(node.input[1], 'position')}.weight", weights[node.input[0]]


def _joined(names: list[str], maps: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The linear maps that bear these names. A `LastLayerPiece` has its query apart from key and value."""
    for name, (weight, bias) in zip(names, maps, strict=False):
        if name.endswith("query_key_value") and len(weight) == weight.shape[1]:
            key_value, key_value_bias = next(maps)
            weight, bias = np.concatenate([weight, key_value]), np.concatenate([bias, key_value_bias])
        yield weight, bias
    yield from maps  # more than there are names for, which the caller refuses


def arrays_of(graph: Any) -> dict[str, np.ndarray]:
    """The weights of a piece by their names in its graph."""
    arrays: Any = optional_import("onnx", "build").numpy_helper
    return {tensor.name: arrays.to_array(tensor) for tensor in graph.initializer}


def linear_maps(graph: Any, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weight [out, in] and bias [out] of each linear map of a piece, in the order in which it computes them. A bias of
    zeros may have been left out by the exporter."""
    onnx: Any = optional_import("onnx", "build")
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type == "Gemm":
            told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if any(told.get(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
                raise EngineError(f"{node.name}: a linear map with a factor, which torch's exporter does not make")
            weight = weights[node.input[1]] if told.get("transB") else weights[node.input[1]].T
            yield weight, weights[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        elif node.op_type == "MatMul" and node.input[1] in weights:
            addends = added[node.output[0]].input if node.output[0] in added else ()
            weight = weights[node.input[1]].T
            zeros = np.zeros(len(weight), np.float32)
            yield weight, next((weights[name] for name in addends if name in weights), zeros)


def _shape(graph: Any, arrays: Any) -> dict[str, str]:
    """Of a layer, what its weights do not tell."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    operators = {node.op_type: node for node in reversed(graph.node)}
    heads = next(node.input[3] for node in graph.node if node.op_type == "Concat" and len(node.input) == 5)
    (eps,) = (one.f for one in operators["LayerNormalization"].attribute if one.name == "epsilon")
    activation = "gelu" if "Gelu" in operators else "relu"
    return {"num_heads": str(int(arrays.to_array(weights[heads])[0])), "eps": repr(eps), "activation": activation}
