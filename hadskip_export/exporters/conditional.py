"""The whole gated model as one ONNX file for the runtime's `Conditional`: an `If` per layer, a threshold per gate and a
cap as inputs.

In bf16 OpenVINO computes matrix products below fp32, and what stands between them, but not what comes after the last
of them on the way to an output. So the gates of a bf16 graph have no products: they multiply and sum, which makes them
and the decisions fp32. States are handed on in bfloat16, as the engine's full BERT does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.errors import EngineError, first_line, optional_import
from hadskip_export.exporters.joining import HIDDEN_STATES, inlined, save, skippable
from hadskip_export.exporters.weights import arrays_of, linear_maps
from hadskip_export.runtime.bundle import ModelInfo, gate_name, layer_name

MASK, THRESHOLDS, MOST, RAN = "attention_mask", "gate_thresholds", "max_layers", "layers_ran"


def join_conditional(pieces: Mapping[str, Path], model: ModelInfo, out: Path, bf16: bool = False) -> None:
    """Joins pieces into the graph that `Conditional` runs.

    Args:
        pieces: ONNX file of each piece, gates one by one.
        bf16: for an engine that will compute the file in bfloat16.

    Raises:
        EngineError: `onnx` is not installed, or the files are not what they should be.
    """
    onnx: Any = optional_import("onnx", "build")
    helper, kinds, arrays = onnx.helper, onnx.TensorProto, onnx.numpy_helper
    try:
        embeddings = onnx.load(pieces["embeddings"])
        nodes, weights, hidden = inlined(embeddings, "embeddings", {})
        weights += [
            arrays.from_array(np.ones(1, np.int64), "columns"),
            arrays.from_array(np.zeros((1, 1), np.int64), "layers_done_0"),
            arrays.from_array(np.zeros(1, np.int64), "to_scalar"),
        ]
        columns = [f"threshold_{index}" for index in range(model.layers)]
        nodes += [
            helper.make_node("Split", [THRESHOLDS], columns, axis=1, num_outputs=model.layers),
            helper.make_node("Unsqueeze", [MOST, "columns"], ["most"]),
        ]
        ran, state = [], hidden
        if bf16:
            state = f"{hidden}/narrow"
            nodes.append(helper.make_node("Cast", [hidden], [state], to=kinds.BFLOAT16))
        for index in range(model.layers):
            layer, gate = layer_name(index), gate_name(index)
            question = onnx.load(pieces[gate])
            question = without_products(question) if bf16 else question
            asked, gate_weights, margin = inlined(question, gate, {HIDDEN_STATES: hidden})
            done, more = f"layers_done_{index}", f"layers_done_{index + 1}"
            inside, state = skippable(onnx.load(pieces[layer]), layer, state, f"{layer}/run", bf16)
            hidden = state
            if bf16:
                hidden = f"{state}/wide"
                inside.append(helper.make_node("Cast", [state], [hidden], to=kinds.FLOAT))
            ran.append(f"{layer}/ran")
            nodes += [
                *asked,
                helper.make_node("Unsqueeze", [margin, "columns"], [f"{gate}/column"]),
                helper.make_node("Greater", [f"{gate}/column", columns[index]], [f"{gate}/fires"]),
                helper.make_node("Less", [done, "most"], [f"{layer}/may"]),
                helper.make_node("And", [f"{gate}/fires", f"{layer}/may"], [f"{layer}/runs"]),
                helper.make_node("Squeeze", [f"{layer}/runs", "to_scalar"], [f"{layer}/run"]),
                helper.make_node("Cast", [f"{layer}/runs"], [f"{layer}/one"], to=kinds.INT64),
                helper.make_node("Add", [done, f"{layer}/one"], [more]),
                helper.make_node("Cast", [f"{layer}/runs"], [ran[-1]], to=kinds.FLOAT),
                *inside,
            ]
            weights += gate_weights
        last, head_weights, logits = inlined(onnx.load(pieces["head"]), "head", {HIDDEN_STATES: hidden})
    except Exception as error:  # protobuf's and onnx's own exceptions have no common base
        raise EngineError(f"{out.name}: the pieces cannot be joined ({first_line(error)})") from error
    nodes += [*last, helper.make_node("Concat", ran, [RAN], axis=1)]
    names = [one.name for one in embeddings.graph.input]
    inputs = [helper.make_tensor_value_info(name, kinds.INT64, [1, "length"]) for name in (*names, MASK)]
    inputs.append(helper.make_tensor_value_info(THRESHOLDS, kinds.FLOAT, [1, model.layers]))
    inputs.append(helper.make_tensor_value_info(MOST, kinds.INT64, [1]))
    outputs = [
        helper.make_tensor_value_info(logits, kinds.FLOAT, [1, len(model.labels)]),
        helper.make_tensor_value_info(RAN, kinds.FLOAT, [1, model.layers]),
    ]
    graph = helper.make_graph(nodes, "conditional", inputs, outputs, [*weights, *head_weights])
    joined = helper.make_model(graph, opset_imports=embeddings.opset_import, ir_version=embeddings.ir_version)
    save(joined, out, beside=True)


def without_products(gate: Any) -> Any:
    """The piece of one gate (`modeling.gated.Gate`) without matrix products, for one input that has no padding."""
    onnx: Any = optional_import("onnx", "build")
    node, arrays = onnx.helper.make_node, onnx.numpy_helper
    (hidden, hidden_bias), (weight, bias) = linear_maps(gate.graph, arrays_of(gate.graph))  # [w, H], [w], [1, w], [1]
    (norm,) = (one for one in gate.graph.node if one.op_type == "LayerNormalization")
    weights = {
        "hidden": hidden[None],
        "hidden_bias": hidden_bias,
        "weight": weight,
        "bias": bias,
        "ones": np.ones(hidden.shape[1], np.float32),
        "tokens": np.array([1]),
        "channels": np.array([2]),
    }
    nodes = [
        node("ReduceMean", [HIDDEN_STATES, "tokens"], ["mean"], keepdims=0),
        node("LayerNormalization", ["mean", "ones"], ["pooled"]),
        node("Unsqueeze", ["pooled", "tokens"], ["row"]),
        node("Mul", ["row", "hidden"], ["products"]),  # [1, w, H]
        node("ReduceSum", ["products", "channels"], ["sums"], keepdims=0),
        node("Add", ["sums", "hidden_bias"], ["logits"]),
        node("Tanh", ["logits"], ["activations"]),
        node("Mul", ["activations", "weight"], ["parts"]),
        node("ReduceSum", ["parts", "tokens"], ["sum"], keepdims=0),
        node("Add", ["sum", "bias"], ["margin"]),
    ]
    nodes[1].attribute.extend(norm.attribute)
    tensors = [arrays.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "gate", gate.graph.input, gate.graph.output, tensors)
    return onnx.helper.make_model(graph, opset_imports=gate.opset_import, ir_version=gate.ir_version)
