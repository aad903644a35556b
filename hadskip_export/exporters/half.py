"""fp32 graphs -> fp16 ones. What a piece takes and gives stays fp32, and so do normalisation and softmax."""

from collections import Counter
from typing import Any

from hadskip_export.support.errors import EngineError, first_line, optional_import
from hadskip_export.support.silence import silenced

FP32_OPERATORS = ["LayerNormalization", "Softmax", "Cast"]


def halved(model: Any) -> Any:
    """A graph in fp16, with casts around what stays fp32. A constant beyond fp16, such as the
    attention mask's, becomes the largest that the converter allows, 1e4.

    Raises:
        EngineError: the converter is not installed, or refuses the graph.
    """
    float16: Any = optional_import("onnxruntime.transformers.float16", "ort or ort-gpu")
    onnx_model: Any = optional_import("onnxruntime.transformers.onnx_model", "ort or ort-gpu")
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *FP32_OPERATORS]
    try:
        with silenced():
            _own_weights(model.graph)
            _without_types_of_weights(model.graph)
            half = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
            # It adds casts at the end, which engines put up with, but not inside an `If`.
            onnx_model.OnnxModel.graph_topological_sort(half.graph, is_deterministic=True)
            return half
    except Exception as error:  # it raises whatever went wrong inside it
        raise EngineError(f"onnxruntime cannot write {model.graph.name} in fp16 ({first_line(error)})") from error


def _own_weights(graph: Any) -> None:
    """Copies the weights that a node which stays fp32 shares with others; equal weights are shared in a file. The
    converter makes a weight of both precisions fp16 and casts it back, before onnxruntime 1.32 by nodes of one name."""
    uses = Counter(name for node in graph.node for name in node.input)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in FP32_OPERATORS:
            continue
        for place, name in enumerate(node.input):
            if name in weights and uses[name] > 1:
                uses[name] -= 1
                own = graph.initializer.add()
                own.CopyFrom(weights[name])
                node.input[place] = own.name = f"{name}.{node.output[0]}.{place}"


def _without_types_of_weights(graph: Any) -> None:
    """Drops the value_info of weights: the converter casts one that has it back to fp32, though it left it so."""
    weights = {tensor.name for tensor in graph.initializer}
    others = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(others)
