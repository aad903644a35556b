"""OpenVINO on the CPU. Of a whole model it has two graphs: with an `If` for each layer, faster for inputs that come
alone, and with layers that take the rows which run them, so that all share the memory they compute in.

In bf16 it computes matrix products below fp32, and what stands between them, but not what comes after the last of them
on the way to an output. So the gates of a whole bf16 graph have no products: they multiply and sum, which makes them
and the decisions fp32. States are handed on in bfloat16, as the engine's full BERT does. For the same reason gates are
not fused with layers in bf16.
"""

from functools import partial
from typing import Any

import numpy as np

from hadskip_export.exporters.assemble import HIDDEN_STATES, MASK, Form, Pieces
from hadskip_export.exporters.quantise import quantise_weights
from hadskip_export.exporters.targets.base import OnnxTarget
from hadskip_export.runtime.manifest import WHOLE, WHOLE_ALONE
from hadskip_export.support.errors import optional_import

# Families whose layers do: in a branch of a bf16 graph OpenVINO 2026.4 gives something else for one, NaN even.
ENDS_IN_A_SUM = ("modernbert",)


class OpenVinoTarget(OnnxTarget):
    """See `Target`."""

    def whole_forms(self, precision: str, family: str = "bert") -> dict[str, Form]:
        if precision != "bf16":
            return {WHOLE: Form(), WHOLE_ALONE: Form(rows=False)}
        forms = {WHOLE: Form(bf16_states=True, gate=partial(without_products, padded=True))}
        if family not in ENDS_IN_A_SUM:
            forms[WHOLE_ALONE] = Form(rows=False, bf16_states=True, gate=partial(without_products, padded=False))
        return forms


def without_products(pieces: Pieces, name: str, padded: bool) -> Any:
    """The graph of one gate (`GatePiece`) without matrix products.

    Args:
        padded: inputs may have padding; if not, the mask is not read, which saves time.
    """
    onnx: Any = optional_import("onnx", "build")
    node, arrays = onnx.helper.make_node, onnx.numpy_helper
    gate = pieces.read_with_tensors(name)
    found = {tensor.name: arrays.to_array(tensor) for tensor in gate.graph.initializer}
    products = [one for one in gate.graph.node if one.op_type == "Gemm"]
    (hidden, hidden_bias), (weight, bias) = ([found[part] for part in one.input[1:]] for one in products)
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


TARGET = OpenVinoTarget(
    precisions=("fp32", "bf16", "int8"),
    cuts=("whole", "layers", "gates"),
    converts={"int8": quantise_weights},
    fuses={"fp32": True, "bf16": False, "int8": True},
    whole_stem={},
    whole_exits=("fp32", "int8"),
)
