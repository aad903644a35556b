"""Larger graphs give what their pieces give one by one, and a layer that is skipped is not computed."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.exporters.assemble import Decided, Form, Pieces, full, fuse, whole
from hadskip_export.exporters.targets.openvino import without_products
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.tokenization import pad
from hadskip_export.support.errors import EngineError
from tests.conftest import STATIC_ROUTE, sentences
from tests.exporters.changing import copy_of, files_of, run, saved

TEXTS = ["", *(text for text, _ in sentences(30, 11))]
LAYERS = 4
ROWS, BRANCHES = Form(), Form(rows=False)
FORMS = {"rows": ROWS, "branches": BRANCHES, "portable": Form(portable=True)}


@pytest.fixture(scope="module")
def mine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that graphs may be written into."""
    return copy_of(bundle, tmp_path_factory.mktemp("assemble"))


@pytest.fixture(scope="module")
def graphs(mine: Path) -> dict[str, Path]:
    """The whole model in every form."""
    manifest = read_bundle(mine).manifest
    pieces, decided = Pieces(mine, manifest.pieces), Decided((0.0,) * LAYERS)
    return {name: saved(whole(pieces, manifest.model, decided, form), mine, f"tried_{name}.onnx")
            for name, form in FORMS.items()}  # fmt: skip


@pytest.fixture(scope="module")
def encode(mine: Path):
    with Predictor.load(mine) as predictor:
        yield predictor.tokenizer.encode


def states(rows: int, length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(np.int64)
    return {"hidden_states": random.normal(size=(rows, length, 32)).astype(np.float32), "attention_mask": mask}


# A layer with gates in it


@pytest.fixture(scope="module")
def fused(mine: Path) -> dict[tuple[int, int], Path]:
    """Every layer that gates come after, with every number of them taken out."""
    pieces, files = Pieces(mine, read_bundle(mine).manifest.pieces), {}
    for layer in range(1, LAYERS):
        for first in range(LAYERS):
            graph = fuse(pieces.read(f"layer_0{layer}"), pieces.read("gates"), first, mine)
            files[layer, first] = saved(graph, mine, f"fused_{layer}_{first}.onnx")
    return files


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, LAYERS - 1), st.integers(0, LAYERS - 1), st.integers(1, 5), st.integers(1, 12), st.integers(0, 99)
)
def test_it_gives_what_the_two_give(mine: Path, fused, layer: int, first: int, rows: int, length: int, seed: int):
    feed = states(rows, length, seed)
    (expected,) = run(mine / "model" / f"layer_0{layer}.onnx", feed)
    (margins,) = run(mine / "model" / "gates.onnx", feed | {"hidden_states": expected})
    got, got_margins = run(fused[layer, first], feed)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got_margins.shape == margins.shape
    np.testing.assert_allclose(got_margins[:, first:], margins[:, first:], atol=1e-4)


def test_it_is_a_sound_model_that_reads_no_gate_too_many(fused):
    read = []
    for first in range(LAYERS):
        onnx.checker.check_model(fused[2, first], full_check=True)
        tensors = onnx.load(fused[2, first]).graph.initializer
        read.append(sum(len(tensor.raw_data) for tensor in tensors if tensor.name.startswith("gates/")))
    assert read == sorted(read, reverse=True) and len(set(read)) == LAYERS


# All pieces as one graph that decides nothing


def test_full_is_every_layer_one_after_the_other(mine: Path, encode):
    manifest = read_bundle(mine).manifest
    pieces = Pieces(mine, manifest.pieces)
    names = ["embeddings", "layer_01", "layer_02", "layer_03", "layer_04", "head"]
    graph = full({name: pieces.read(name) for name in names}, manifest.model.inputs)
    file = saved(graph, mine, "tried_full.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert [one.name for one in graph.graph.input] == list(manifest.model.inputs)
    batch = pad(encode(TEXTS[:6]))
    feed = {name: getattr(batch, name) for name in manifest.model.inputs}
    (state,) = run(mine / "model" / "embeddings.onnx", {n: feed[n] for n in ("input_ids", "token_type_ids")})
    for name in names[1:-1]:
        (state,) = run(
            mine / "model" / f"{name}.onnx", {"hidden_states": state, "attention_mask": feed["attention_mask"]}
        )
    (expected,) = run(mine / "model" / "head.onnx", {"hidden_states": state})
    np.testing.assert_allclose(run(file, feed)[0], expected, atol=1e-5)


# The gated model as one graph


def plain_loop(bundle: Path, inputs: dict[str, np.ndarray], thresholds, most: int) -> tuple[np.ndarray, list[bool]]:
    """One input, its pieces one after the other."""
    folder, mask = bundle / "model", inputs["attention_mask"]
    (state,) = run(folder / "embeddings.onnx", {n: inputs[n] for n in ("input_ids", "token_type_ids")})
    ran = []
    for number, threshold in enumerate(thresholds, 1):
        feed = {"hidden_states": state, "attention_mask": mask}
        (margin,) = run(folder / f"gate_0{number}.onnx", feed)
        ran.append(bool(margin[0] > np.float32(threshold) and sum(ran) < most))
        if ran[-1]:
            (state,) = run(folder / f"layer_0{number}.onnx", feed)
    return run(folder / "head.onnx", {"hidden_states": state})[0], ran


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(FORMS)),
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4),
    st.lists(st.sampled_from([-9.0, -1.0, -0.2, 0.0, 0.3, 1.0, 9.0]), min_size=LAYERS * 4, max_size=LAYERS * 4),
    st.lists(st.integers(0, LAYERS), min_size=4, max_size=4),
)
def test_whole_it_gives_what_a_plain_loop_over_the_pieces_gives(
    mine: Path, graphs, encode, form, texts, thresholds, most
):
    if form == "branches":
        texts = texts[:1]
    terms, inputs = np.array(thresholds, np.float32).reshape(4, LAYERS)[: len(texts)], read_bundle(mine).manifest
    batch = pad(encode(texts))
    feed = {name: getattr(batch, name) for name in inputs.model.inputs}
    own = {"gate_thresholds": terms, "max_layers": np.array(most[: len(texts)])}
    logits, ran = run(graphs[form], feed | own)
    assert ran.dtype == (bool if form == "portable" else np.float32)
    for row, encoded in enumerate(encode(texts)):
        alone = pad([encoded])
        expected, layers = plain_loop(
            mine, {name: getattr(alone, name) for name in inputs.model.inputs}, terms[row], most[row]
        )
        assert (ran[row] > 0).tolist() == layers
        np.testing.assert_allclose(logits[row : row + 1], expected, atol=1e-5)


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += nodes_of(attribute.g)
    return found


def test_with_branches_layers_are_only_inside_them(graphs):
    """What is inside a branch that is not taken is not computed."""
    onnx.checker.check_model(graphs["branches"], full_check=True)
    model = onnx.load(graphs["branches"])
    branches = [node for node in model.graph.node if node.op_type == "If"]
    assert len(branches) == LAYERS
    outside = [node for node in model.graph.node if node.name.startswith("layer_")]
    assert {node.op_type for node in outside} == {"If", "Where", "Constant", "Gather"}
    for index, node in enumerate(branches):
        inside = {one.name: len(one.g.node) for one in node.attribute}
        assert inside["then_branch"] > 10 and inside["else_branch"] == 1
        names = [one.name for branch in node.attribute for one in branch.g.node]
        assert any(name.startswith(f"layer_0{index + 1}/") for name in names)


@pytest.mark.parametrize("narrow", [False, True])
def test_for_batches_every_layer_takes_the_rows_that_run_it(mine: Path, narrow: bool):
    manifest = read_bundle(mine).manifest
    pieces = Pieces(mine, manifest.pieces)
    graph = whole(pieces, manifest.model, Decided((0.0,) * LAYERS), Form(bf16_states=narrow))
    file = saved(graph, mine, f"tried_{narrow}.onnx")
    onnx.checker.check_model(file, full_check=True)
    kinds = [node.op_type for node in graph.graph.node if node.name.startswith("layer_")]
    assert "If" not in kinds
    assert [kinds.count(kind) for kind in ("NonZero", "GatherND", "ScatterND")] == [LAYERS, 2 * LAYERS, LAYERS]


@pytest.mark.parametrize("form", ["rows", "portable"])
def test_layers_that_are_skipped_multiply_nothing(graphs, encode, tmp_path: Path, form: str):
    """ONNX Runtime's own profile says of how many bytes each product was."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes keep their names
    session = onnxruntime.InferenceSession(graphs[form], options, providers=["CPUExecutionProvider"])
    batch = pad(encode(["a good film"]))
    feed = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    route = np.array([[-np.inf, np.inf, -np.inf, np.inf]], np.float32)
    _, ran = session.run(None, feed | {"gate_thresholds": route, "max_layers": np.array([4])})
    assert (ran > 0).tolist() == [[True, False, True, False]]
    events = json.loads(Path(session.end_profiling()).read_text())
    work = dict.fromkeys(range(1, LAYERS + 1), 0)
    for event in events:
        name = event["name"]
        if (
            event.get("cat") == "Node"
            and "MatMul" in name
            and name.startswith("layer_")
            and "output_size" in event["args"]
        ):
            work[int(name[6:8])] += int(event["args"]["output_size"])
    assert work[2] == work[4] == 0 < work[1] and work[3] > 0


@pytest.mark.parametrize("form", list(FORMS))
def test_of_a_fixed_route_it_runs_that_unless_it_is_told_otherwise(static_bundle: Path, tmp_path: Path, form: str):
    mine = copy_of(static_bundle, tmp_path)
    manifest = read_bundle(mine).manifest
    decided = Decided((0.0,) * LAYERS, STATIC_ROUTE)
    file = saved(whole(Pieces(mine, manifest.pieces), manifest.model, decided, FORMS[form]), mine)
    onnx.checker.check_model(file, full_check=True)
    with Predictor.load(static_bundle) as predictor:
        encoded = predictor.tokenizer.encode(TEXTS[3:4] if form == "branches" else TEXTS[:5])
        expected, _ = predictor.run(encoded)
        capped, _ = predictor.run(encoded, max_layers=1)
    batch = pad(encoded)
    feed = {name: getattr(batch, name) for name in manifest.model.inputs}
    terms = {"gate_thresholds": np.float32([[-1, 1, -1, 1]]), "max_layers": np.array([4])}
    for logits, ran, wanted, route in (
        (*run(file, feed | terms), expected, [1, 0, 1, 0]),
        (*run(file, feed | terms | {"max_layers": np.array([1])}), capped, [1, 0, 0, 0]),
    ):
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
        assert (ran > 0).tolist() == [list(map(bool, route))] * len(encoded)


def test_a_default_is_the_thresholds_or_what_makes_the_route():
    assert Decided((0.25, -1.0)).defaults.tolist() == [[0.25, -1.0]]
    defaults = Decided((0.0,) * LAYERS, STATIC_ROUTE).defaults
    assert defaults.dtype == np.float32 and (defaults[0] < 0).tolist() == [n in STATIC_ROUTE for n in range(1, 5)]


# What goes wrong


@pytest.mark.parametrize("content", [b"junk", b"\xff\x00\x07", None], ids=["junk", "bytes", "missing"])
def test_what_onnx_cannot_read_is_refused_in_one_line(bundle: Path, tmp_path: Path, content: bytes | None):
    mine = copy_of(bundle, tmp_path)
    file = mine / "model" / "layer_01.onnx"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EngineError, match=r"layer_01\.onnx: onnx cannot read it \(.+\); build the bundle") as error:
        Pieces(mine, {"layer_01": "model/layer_01.onnx"}).read("layer_01")
    assert "\n" not in str(error.value)


def test_without_onnx_nothing_is_added_and_the_message_names_the_extra(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = copy_of(bundle, tmp_path)
    before = files_of(mine)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for cut in ("layers", "whole"):
        with pytest.raises(EngineError, match=r"needs onnx.*hadskip-export\[build\]"):
            build(mine, engine="openvino", cut=cut)
    assert files_of(mine) == before
    assert build(mine, engine="openvino", cut="gates").parity == "passed"  # which needs none


def test_a_gate_without_products_is_a_sound_graph(mine: Path):
    pieces = Pieces(mine, read_bundle(mine).manifest.pieces)
    for padded in (True, False):
        model = without_products(pieces, "gate_01", padded)
        onnx.checker.check_model(model, full_check=True)
        assert not {"MatMul", "Gemm", "Einsum", "Conv"} & {node.op_type for node in nodes_of(model.graph)}
