"""The whole gated model as one ONNX file: `If` per layer, one input at a time. For programs without Python

    input_ids, attention_mask, token_type_ids  int64 [1, s]
    gate_threshold                             float32 [], optional: the fitted value if left out
      -> logits float32 [1, classes], layers_run bool [1, L]

where a bundle of a fixed route has no gates: no `If`, no threshold, and batches of any size; and for the runtime's
`Conditional`, which sets each gate's threshold and a cap.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.errors import EngineError, first_line, optional_import
from hadskip_export.exporters.golden import Golden
from hadskip_export.exporters.joining import HIDDEN_STATES, inlined, save
from hadskip_export.exporters.parity import LOGITS_TOLERANCE, ROUTE_EPSILON, count_flips, largest_difference
from hadskip_export.routes import as_row
from hadskip_export.runtime.bundle import Bundle, ModelInfo, gate_name, layer_name
from hadskip_export.runtime.tokenization import Encoded, pad

MASK, THRESHOLD = "attention_mask", "gate_threshold"
THRESHOLDS, MOST, RAN = "gate_thresholds", "max_layers", "layers_ran"


def write_graph(bundle: Bundle, out: Path) -> None:
    """Joins the fp32 pieces of `bundle` into `out`.

    Raises:
        EngineError: `onnx` is not installed.
    """
    onnx: Any = optional_import("onnx", "build")
    helper, kinds = onnx.helper, onnx.TensorProto
    manifest = bundle.manifest
    model, route = manifest.model, manifest.router.route
    batch = 1 if route is None else "batch"

    def read(piece: str) -> Any:
        return onnx.load(bundle.file(manifest.pieces[piece]))

    embeddings = read("embeddings")
    nodes, weights, hidden = inlined(embeddings, "embeddings", {})
    ran = []
    for index in range(model.layers):
        layer = layer_name(index)
        if route is None:
            asked, gate_weights, margin = inlined(read(gate_name(index)), gate_name(index), {HIDDEN_STATES: hidden})
            ran.append(f"{layer}/run")
            node, output = _skippable(read(layer), index, hidden, ran[-1], model)
            nodes += [*asked, helper.make_node("Greater", [margin, THRESHOLD], [ran[-1]]), node]
            weights, hidden = weights + gate_weights, output
        elif index + 1 in route:
            inside, layer_weights, hidden = inlined(read(layer), layer, {HIDDEN_STATES: hidden})
            nodes, weights = nodes + inside, weights + layer_weights
    if route is None:
        nodes.append(helper.make_node("Concat", ran, ["run"], axis=0))
        weights.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "first"))
        nodes.append(helper.make_node("Unsqueeze", ["run", "first"], ["layers_run"]))
        weights.append(onnx.numpy_helper.from_array(np.float32(manifest.router.threshold), THRESHOLD))
    else:
        weights.append(onnx.numpy_helper.from_array(as_row(route, model.layers)[None], "layers_run"))
    last, head_weights, _ = inlined(read("head"), "head", {HIDDEN_STATES: hidden}, {"logits": "logits"})
    inputs = [helper.make_tensor_value_info(name, kinds.INT64, [batch, "length"]) for name in model.inputs]
    if route is None:
        inputs.append(helper.make_tensor_value_info(THRESHOLD, kinds.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("logits", kinds.FLOAT, [batch, len(model.labels)]),
        helper.make_tensor_value_info("layers_run", kinds.BOOL, [1, model.layers]),
    ]
    graph = helper.make_graph([*nodes, *last], "hadskip", inputs, outputs, [*weights, *head_weights])
    joined = helper.make_model(
        graph, opset_imports=embeddings.opset_import, ir_version=embeddings.ir_version, producer_name="hadskip-export"
    )
    save(joined, out)


def join_conditional(pieces: Mapping[str, Path], model: ModelInfo, out: Path) -> None:
    """Joins pieces into the graph that `Conditional` runs.

    Args:
        pieces: ONNX file of each piece, gates one by one.

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
        ran = []
        for index in range(model.layers):
            layer, gate = layer_name(index), gate_name(index)
            asked, gate_weights, margin = inlined(onnx.load(pieces[gate]), gate, {HIDDEN_STATES: hidden})
            done, more = f"layers_done_{index}", f"layers_done_{index + 1}"
            node, output = _skippable(onnx.load(pieces[layer]), index, hidden, f"{layer}/run", model)
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
                node,
            ]
            weights, hidden = weights + gate_weights, output
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
    save(helper.make_model(graph, opset_imports=embeddings.opset_import, ir_version=embeddings.ir_version), out)


def _skippable(piece: Any, index: int, hidden: str, run: str, model: ModelInfo) -> tuple[Any, str]:
    """A layer as an `If` on `run`, and what its output is called."""
    helper: Any = optional_import("onnx", "build").helper
    layer, kind = layer_name(index), piece.graph.output[0].type.tensor_type.elem_type
    inside, weights, output = inlined(piece, layer, {HIDDEN_STATES: hidden})
    state = helper.make_tensor_value_info(output, kind, [1, "length", model.hidden_size])
    kept = helper.make_tensor_value_info(f"{layer}/kept", kind, [1, "length", model.hidden_size])
    skip = helper.make_graph([helper.make_node("Identity", [hidden], [f"{layer}/kept"])], "skip", [], [kept])
    then = helper.make_graph(inside, layer, [], [state], weights)
    return helper.make_node("If", [run], [f"{layer}/out"], then_branch=then, else_branch=skip), f"{layer}/out"


def check_graph(file: Path, bundle: Bundle, golden: Golden, encoded: Iterable[Encoded]) -> None:
    """Runs the golden inputs through the graph, on ONNX Runtime.

    Raises:
        EngineError: it is refused, or does not give the golden answers.
    """
    ort: Any = optional_import("onnxruntime", "ort or ort-gpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it would warn that an input has a default
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    answers = []
    for one in encoded:
        batch = pad([one])
        answers.append(session.run(None, {name: getattr(batch, name) for name in bundle.manifest.model.inputs}))
    logits, routes = (np.concatenate(column) for column in zip(*answers, strict=True))
    near = np.full(routes.shape[1], ROUTE_EPSILON)
    flips = count_flips(golden.margins - bundle.manifest.router.threshold, golden.routes, routes, near)
    same = (routes == golden.routes).all(axis=1)
    largest = largest_difference(logits[same], golden.logits[same])
    if flips or not largest <= LOGITS_TOLERANCE:
        raise EngineError(
            f"{file}: does not give the golden answers ({flips} routes differ, logits by up to {largest:.1e}); build"
            " the bundle again"
        )
