"""The whole gated model as one ONNX file for the runtime's `Conditional`, with a threshold per gate and a cap as
inputs. Each layer is an `If` where only inputs that come alone are run; for batches it takes the rows that run it.

What lives from layer to layer is used by each of them (thresholds are an input, the layers that ran a sum): an engine
gives memory that is free to whatever comes next, and what is small and used at the end would hold what a layer's states
were in, so that each layer takes new memory (OpenVINO: twice as much in all).

In bf16 OpenVINO computes matrix products below fp32, and what stands between them, but not what comes after the last
of them on the way to an output. So the gates of a bf16 graph have no products: they multiply and sum, which makes them
and the decisions fp32. States are handed on in bfloat16, as the engine's full BERT does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.exporters.joining import HIDDEN_STATES, MASK, inlined, on_rows, save, skippable
from hadskip_export.exporters.weights import arrays_of, linear_maps
from hadskip_export.runtime.bundle import ModelInfo, gate_name, layer_name
from hadskip_export.support.errors import EngineError, first_line, optional_import

THRESHOLDS, MOST, RAN = "gate_thresholds", "max_layers", "layers_ran"


def join_conditional(
    pieces: Mapping[str, Path],
    model: ModelInfo,
    out: Path,
    bf16: bool = False,
    batches: bool = False,
    shared: Path | None = None,
) -> None:
    """Joins pieces into a graph that `Conditional` runs.

    Args:
        pieces: ONNX file of each piece, gates one by one.
        bf16: for an engine that will compute the file in bfloat16.
        batches: it takes any number of inputs, of which some may have padding.
        shared: another such graph of the same pieces, whose weights it uses.

    Raises:
        EngineError: `onnx` is not installed, or the files are not what they should be.
    """
    onnx: Any = optional_import("onnx", "build")
    helper, kinds, arrays = onnx.helper, onnx.TensorProto, onnx.numpy_helper
    try:
        embeddings = onnx.load(pieces["embeddings"])
        nodes, weights, hidden = inlined(embeddings, "embeddings", {})
        nodes.append(helper.make_node("Cast", [MOST], ["most"], to=kinds.FLOAT))
        weights += [
            arrays.from_array(np.zeros(1, np.int64), "layers"),  # the axis
            arrays.from_array(np.float32(0), "nothing"),
            arrays.from_array(np.zeros((model.layers, 1), np.float32), "ran_0"),
        ]
        state = hidden
        if bf16:
            state = f"{hidden}/narrow"
            nodes.append(helper.make_node("Cast", [hidden], [state], to=kinds.BFLOAT16))
        for index in range(model.layers):
            layer, gate = layer_name(index), gate_name(index)
            question = onnx.load(pieces[gate])
            question = without_products(question, padded=batches) if bf16 else question
            asked, gate_weights, margin = inlined(question, gate, {HIDDEN_STATES: hidden})
            piece = onnx.load(pieces[layer])
            if batches:
                inside, layer_weights, state = on_rows(piece, layer, state, f"{layer}/run", bf16)
                weights += layer_weights
            else:
                inside, state = skippable(piece, layer, state, f"{layer}/run", bf16)
            hidden = state
            if bf16:
                hidden = f"{state}/wide"
                inside.append(helper.make_node("Cast", [state], [hidden], to=kinds.FLOAT))
            ran, more = f"ran_{index}", f"ran_{index + 1}"
            nodes += [
                *asked,
                helper.make_node("Gather", [THRESHOLDS, f"{gate}/index"], [f"{gate}/threshold"], axis=1),
                helper.make_node("Greater", [margin, f"{gate}/threshold"], [f"{gate}/fires"]),
                helper.make_node("ReduceSum", [ran, "layers"], [f"{layer}/done"], keepdims=0),
                helper.make_node("Less", [f"{layer}/done", "most"], [f"{layer}/may"]),
                helper.make_node("And", [f"{gate}/fires", f"{layer}/may"], [f"{layer}/run"]),
                helper.make_node("Where", [f"{layer}/run", f"{layer}/one", "nothing"], [f"{layer}/ran"]),
                helper.make_node("Add", [ran, f"{layer}/ran"], [more]),  # [L, b]
                *inside,
            ]
            weights += [
                arrays.from_array(np.int64(index), f"{gate}/index"),
                arrays.from_array(np.eye(model.layers, dtype=np.float32)[:, [index]], f"{layer}/one"),
            ]
            weights += gate_weights
        last, head_weights, logits = inlined(onnx.load(pieces["head"]), "head", {HIDDEN_STATES: hidden})
    except Exception as error:  # protobuf's and onnx's own exceptions have no common base
        raise EngineError(f"{out.name}: the pieces cannot be joined ({first_line(error)})") from error
    nodes += [*last, helper.make_node("Transpose", [more], [RAN])]
    names, rows = [one.name for one in embeddings.graph.input], "batch" if batches else 1
    inputs = [helper.make_tensor_value_info(name, kinds.INT64, [rows, "length"]) for name in (*names, MASK)]
    inputs.append(helper.make_tensor_value_info(THRESHOLDS, kinds.FLOAT, [rows, model.layers]))
    inputs.append(helper.make_tensor_value_info(MOST, kinds.INT64, [rows]))
    outputs = [
        helper.make_tensor_value_info(logits, kinds.FLOAT, [rows, len(model.labels)]),
        helper.make_tensor_value_info(RAN, kinds.FLOAT, [rows, model.layers]),
    ]
    graph = helper.make_graph(nodes, "conditional", inputs, outputs, [*weights, *head_weights])
    joined = helper.make_model(graph, opset_imports=embeddings.opset_import, ir_version=embeddings.ir_version)
    save(joined, out, beside=True, shared=shared)


def without_products(gate: Any, padded: bool = False) -> Any:
    """The piece of one gate (`modeling.gated.Gate`) without matrix products.

    Args:
        padded: inputs may have padding; if not, the mask is not read, which saves time.
    """
    onnx: Any = optional_import("onnx", "build")
    node, arrays = onnx.helper.make_node, onnx.numpy_helper
    (hidden, hidden_bias), (weight, bias) = linear_maps(gate.graph, arrays_of(gate.graph))  # [w, H], [w], [1, w], [1]
    (norm,) = (one for one in gate.graph.node if one.op_type == "LayerNormalization")
    weights = {
        "hidden": hidden.T,
        "hidden_bias": hidden_bias,
        "weight": weight,
        "bias": bias,
        "ones": np.ones(hidden.shape[1], np.float32),
        "tokens": np.array([1]),
        "channels": np.array([2]),
        "single": np.array([1, 2]),
    }
    # Hidden units are on the last axis: on the second one OpenVINO 2026.4 makes one operator of the sum and of what is
    # done with bias and weights, which it then takes by row where there are several.
    mean = [node("ReduceMean", [HIDDEN_STATES, "tokens"], ["mean"])]  # [b, 1, H]
    if padded:
        mean = [
            node("Cast", [MASK], ["mask"], to=onnx.TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "channels"], ["column"]),
            node("Mul", [HIDDEN_STATES, "column"], ["read"]),
            node("ReduceSum", ["read", "tokens"], ["total"]),
            node("ReduceSum", ["column", "tokens"], ["length"]),
            node("Div", ["total", "length"], ["mean"]),
        ]
    normalised = node("LayerNormalization", ["mean", "ones"], ["pooled"])
    normalised.attribute.extend(norm.attribute)
    nodes = [
        *mean,
        normalised,
        node("Transpose", ["pooled"], ["channel_column"], perm=[0, 2, 1]),
        node("Mul", ["channel_column", "hidden"], ["products"]),  # [b, H, w]
        node("ReduceSum", ["products", "tokens"], ["sums"]),
        node("Add", ["sums", "hidden_bias"], ["logits"]),
        node("Tanh", ["logits"], ["activations"]),
        node("Mul", ["activations", "weight"], ["parts"]),  # [b, 1, w]
        node("ReduceSum", ["parts", "channels"], ["sum"]),
        node("Add", ["sum", "bias"], ["column_margin"]),
        node("Squeeze", ["column_margin", "single"], ["margin"]),
    ]
    tensors = [arrays.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "gate", gate.graph.input, gate.graph.output, tensors)
    return onnx.helper.make_model(graph, opset_imports=gate.opset_import, ir_version=gate.ir_version)
