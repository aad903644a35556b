"""The whole gated model as one ONNX file: `If` per layer, one input at a time. For programs without Python

    input_ids, attention_mask, token_type_ids  int64 [1, s]
    gate_threshold                             float32 [], optional: the fitted value if left out
      -> logits float32 [1, classes], layers_run bool [1, L]

where a bundle of a fixed route has no gates: no `If`, no threshold, and batches of any size.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hadskip_export.exporters.joining import HIDDEN_STATES, inlined, save, skippable
from hadskip_export.routing.routes import as_row
from hadskip_export.runtime.bundle import GRAPH, Bundle, gate_name, layer_name
from hadskip_export.runtime.engines.ort import import_onnxruntime, open_session
from hadskip_export.runtime.tokenization import Encoded, Tokenizer, pad
from hadskip_export.support.errors import EngineError, first_line, optional_import
from hadskip_export.verification.golden import Golden, read_golden
from hadskip_export.verification.parity import LOGITS_TOLERANCE, ROUTE_EPSILON, count_flips, largest_difference

THRESHOLD = "gate_threshold"


def make_graph(bundle: Bundle) -> str:
    """Writes the graph into a bundle and checks it; returns its file, relative to the bundle.

    Raises:
        EngineError: see `write_graph` and `check_graph`.
    """
    golden, file = read_golden(bundle), f"{GRAPH}/model.onnx"
    (bundle.path / GRAPH).mkdir()
    write_graph(bundle, bundle.path / file)
    tokenizer = Tokenizer(bundle.file(bundle.manifest.tokenizer), bundle.manifest.model.max_length)
    check_graph(bundle.path / file, bundle, golden, tokenizer.encode(golden.texts))
    return file


def write_graph(bundle: Bundle, out: Path) -> None:
    """Joins the fp32 pieces of `bundle` into `out`.

    Raises:
        EngineError: `onnx` is not installed, or cannot read a piece.
    """
    onnx: Any = optional_import("onnx", "build")
    helper, kinds = onnx.helper, onnx.TensorProto
    manifest = bundle.manifest
    model, route = manifest.model, manifest.router.route
    batch = 1 if route is None else "batch"

    def read(piece: str) -> Any:
        file = bundle.file(manifest.pieces[piece])
        try:
            return onnx.load(file)
        except Exception as error:  # protobuf's and onnx's own exceptions have no common base
            raise EngineError(f"{file}: onnx cannot read it ({first_line(error)})") from error

    embeddings = read("embeddings")
    nodes, weights, hidden = inlined(embeddings, "embeddings", {})
    ran = []
    for index in range(model.layers):
        layer = layer_name(index)
        if route is None:
            asked, gate_weights, margin = inlined(read(gate_name(index)), gate_name(index), {HIDDEN_STATES: hidden})
            ran.append(f"{layer}/run")
            nodes += [*asked, helper.make_node("Greater", [margin, THRESHOLD], [ran[-1]])]
            inside, hidden = skippable(read(layer), layer, hidden, ran[-1])
            nodes, weights = nodes + inside, weights + gate_weights
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


def check_graph(file: Path, bundle: Bundle, golden: Golden, encoded: Iterable[Encoded]) -> None:
    """Runs the golden inputs through the graph, on ONNX Runtime.

    Raises:
        EngineError: it is refused, or does not give the golden answers.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it would warn that an input has a default
    session = open_session(ort, file, options, "CPUExecutionProvider")
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
