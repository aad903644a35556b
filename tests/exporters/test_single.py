"""`build --single`: the commonest route, or the whole model, as one engine, checked against what it is made of."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export import build
from hadskip_export.benchmark.profile import profile
from hadskip_export.cli import main
from hadskip_export.exporters.conditional import join_conditional, without_products
from hadskip_export.exporters.joining import join_route
from hadskip_export.exporters.onnx import export
from hadskip_export.exporters.pieces import LayerPiece, Piece
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines.base import EngineOptions
from hadskip_export.runtime.engines.openvino import OpenVinoEngine
from hadskip_export.runtime.engines.ort import OrtEngine
from hadskip_export.runtime.tokenization import pad
from hadskip_export.support.errors import BundleError, EngineError
from hadskip_export.verification.parity import compare
from hadskip_export.verification.references import OnnxReference
from tests.conftest import GUESS, needs_bf16, sentences
from tests.exporters.test_joining import run
from tests.runtime.editing import change_manifest, copy_of, reseal

TEXTS = [text for text, _ in sentences(30, 11)]


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 4)), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
def test_a_joined_route_gives_what_its_pieces_give_one_by_one(bundle: Path, tmp_path_factory, layers, texts):
    """In batches too, although nobody asks it for those."""
    route, file = tuple(sorted(layers)), tmp_path_factory.mktemp("route") / "guess.onnx"
    manifest = read_bundle(bundle).manifest
    pieces = {piece: bundle / name for piece, name in manifest.pieces.items()}
    join_route(pieces, 4, route, file)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    with Predictor.load(bundle) as predictor:
        batch = pad(predictor.tokenizer.encode(texts))
    feed = {name: getattr(batch, name) for name in manifest.model.inputs}
    logits, margins, *states = run(file, feed)
    mask = {"attention_mask": feed["attention_mask"]}
    expected = [run(pieces["embeddings"], {name: feed[name] for name in ("input_ids", "token_type_ids")})[0]]
    for index in range(4):
        asked = mask | {"hidden_states": expected[-1]}
        (margin,) = run(pieces[f"gate_0{index + 1}"], asked)
        np.testing.assert_allclose(margins[:, index], margin, atol=1e-4)
        if index + 1 in route:
            expected += run(pieces[f"layer_0{index + 1}"], asked)
    assert len(states) == len(expected) == len(route) + 1
    for got, wanted in zip(states, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(logits, run(pieces["head"], {"hidden_states": expected[-1]})[0], atol=1e-5)


def test_in_the_whole_model_layers_are_only_inside_branches(bundle: Path, tmp_path: Path):
    """What is inside a branch that is not taken is not computed."""
    manifest, file = read_bundle(bundle).manifest, tmp_path / "graph.onnx"
    join_conditional({piece: bundle / name for piece, name in manifest.pieces.items()}, manifest.model, file)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    branches = [node for node in model.graph.node if node.op_type == "If"]
    assert len(branches) == 4
    outside = {node.op_type for node in model.graph.node if node.name.startswith("layer_")}
    assert outside == {"If", "Where", "Constant", "Gather"}  # the first token where the last layer does not run
    for index, node in enumerate(branches):
        inside = {one.name: len(one.g.node) for one in node.attribute}
        assert inside["then_branch"] > 10 and inside["else_branch"] == 1
        names = [one.name for branch in node.attribute for one in branch.g.node]
        assert any(name.startswith(f"layer_0{index + 1}/") for name in names)


def test_in_that_for_batches_every_layer_takes_rows(bundle: Path, tmp_path: Path):
    manifest, file = read_bundle(bundle).manifest, tmp_path / "rows.onnx"
    pieces = {piece: bundle / name for piece, name in manifest.pieces.items()}
    for bf16 in (False, True):
        join_conditional(pieces, manifest.model, file, bf16, batches=True)
        model = onnx.load(file)
        onnx.checker.check_model(model, full_check=True)
        kinds = [node.op_type for node in model.graph.node if node.name.startswith("layer_")]
        assert "If" not in kinds
        assert (kinds.count("NonZero"), kinds.count("GatherND"), kinds.count("ScatterND")) == (4, 8, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.booleans(), st.integers(0, 1000))
def test_a_gate_without_products_gives_the_same_margin(bundle: Path, tmp_path_factory, gate, lengths, openvino, seed):
    """In OpenVINO too, which made something else of an earlier one for several rows."""
    file, mine = bundle / "pieces" / f"gate_0{gate}.onnx", tmp_path_factory.mktemp("gate") / "gate.onnx"
    onnx.save(without_products(onnx.load(file), padded=len(lengths) > 1), mine)
    model = onnx.load(mine)
    onnx.checker.check_model(model, full_check=True)
    assert not {"MatMul", "Gemm", "Einsum", "Conv"} & {node.op_type for node in model.graph.node}
    hidden = np.random.default_rng(seed).normal(size=(len(lengths), max(lengths), 32)).astype(np.float32)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    (expected,) = run(file, {"hidden_states": hidden, "attention_mask": mask})
    if openvino:
        margin = OpenVinoEngine({"gate": mine}, "fp32", EngineOptions()).load("gate")(hidden, mask)
    else:
        (margin,) = run(mine, {"hidden_states": hidden, "attention_mask": mask})
    np.testing.assert_allclose(margin, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEXTS), st.floats(-4, 4), st.one_of(st.none(), st.integers(1, 4)))
def test_one_input_at_a_time_it_answers_as_without_a_guess(both, text: str, threshold: float, most: int | None):
    one, other = (p(text, gate_threshold=threshold, max_layers=most) for p in both)
    assert (one.label, one.layers) == (other.label, other.layers)
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TEXTS), st.lists(st.booleans(), min_size=4, max_size=4), st.one_of(st.none(), st.integers(1, 4)))
def test_forced_routes_are_run_too(both, text: str, route: list[bool], most: int | None):
    one, other = (p([text], routes=np.array([route]), max_layers=most) for p in both)
    assert one[0].layers == other[0].layers
    assert one[0].probabilities == pytest.approx(other[0].probabilities, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=2, max_size=8),
    st.floats(-4, 4),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(0, 1000)),
)
def test_in_batches_too(both, texts: list[str], threshold: float, most: int | None, seed: int | None):
    routes = None if seed is None else np.random.default_rng(seed).random((len(texts), 4)) < 0.5
    answers = [p(texts, gate_threshold=threshold, max_layers=most, routes=routes) for p in both]
    for one, other in zip(*answers, strict=True):
        assert (one.label, one.layers) == (other.label, other.layers)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.fixture(scope="module", params=["guessing_bundle", "graph_bundle"])
def both(request: pytest.FixtureRequest, fused_bundle: Path):
    with Predictor.load(request.getfixturevalue(request.param)) as ours, Predictor.load(fused_bundle) as theirs:
        yield ours, theirs


def test_a_bundle_whose_last_layer_gives_all_tokens_gets_engines_too(guessing_bundle: Path, guessing_source, tmp_path):
    """As bundles were made before it gave the first one alone."""
    copy = copy_of(guessing_bundle, tmp_path)
    layer = LayerPiece(guessing_source.model.classifier.layers[3])
    piece = Piece("layer_04", layer, ("hidden_states", "attention_mask"), "layer_output")
    export(piece, 32, copy / "pieces" / "layer_04.onnx")
    reseal(copy)
    for single in ("guess", "graph"):
        assert build(copy, engine="ort", single=single).parity == "passed"
    build(copy, graph=True)  # which checks it


def test_many_threads_get_their_own_answers(both):
    ours, theirs = both
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ours, TEXTS * 4))
    for one, other in zip(answers, [theirs(text) for text in TEXTS] * 4, strict=True):
        assert (one.label, one.layers) == (other.label, other.layers)


def test_a_profile_shows_the_one_call(graph_bundle: Path):
    with Predictor.load(graph_bundle) as predictor:
        parts = profile(predictor, [[text] for text in TEXTS])
        assert list(parts) == ["tokeniser", "graph", "python"] and parts["graph"] > 0
        assert predictor(TEXTS[0]).layers == predictor([TEXTS[0]])[0].layers


def test_a_profile_shows_the_guess_and_what_came_after_it(guessing_bundle: Path):
    ours = Predictor.load(guessing_bundle)
    predictions = [ours(text) for text in TEXTS]
    assert len({one.layers == GUESS for one in predictions}) == 2  # some are guessed right, some not
    parts = profile(ours, [[text] for text in TEXTS])
    assert parts["guess"] > 0 < parts["layer_04"]
    assert parts["layer_02"] == parts["embeddings"] == 0.0  # never computed again


@pytest.mark.parametrize(("single", "built"), [("guess", "guessing_bundle"), ("graph", "graph_bundle")])
def test_parity_names_what_is_wrong_in_it(request: pytest.FixtureRequest, tmp_path: Path, single: str, built: str):
    wrong_gate = "gates in guess" if single == "guess" else "routes"
    for weight, expected in (("gate_03/", wrong_gate), ("head/", single)):
        mine = copy_of(request.getfixturevalue(built), tmp_path / weight)
        file = mine / "engines" / "ort-fp32" / f"{single}.onnx"
        model = onnx.load(file)
        found = [one for one in model.graph.initializer if one.name.startswith(weight) and len(one.dims) == 2]
        for tensor in found:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(-1.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        file.write_bytes(model.SerializeToString())
        reseal(mine)
        with Predictor.load(mine) as predictor:
            report = compare(OnnxReference(read_bundle(mine)), predictor, predictor.tokenizer.encode(TEXTS[:8]))
        assert report.first_bad_piece == expected
        assert {piece.piece for piece in report.pieces if not piece.passed} <= {expected}


def test_parity_finds_what_is_wrong_for_batches_only(guessing_bundle: Path, tmp_path: Path):
    build(mine := copy_of(guessing_bundle, tmp_path), engine="openvino")
    file = mine / "engines" / "openvino-fp32" / "rows.onnx"
    model = onnx.load(file, load_external_data=False)
    (column,) = (one for one in model.graph.initializer if one.name == "layer_03/one")  # where it says that it ran
    column.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(column) * 0, column.name))
    file.write_bytes(model.SerializeToString())
    reseal(mine)
    with Predictor.load(mine, engine="openvino") as predictor:
        report = compare(OnnxReference(read_bundle(mine)), predictor, predictor.tokenizer.encode(TEXTS[:8]))
    assert report.parity == "failed" and report.first_bad_piece in ("rows", "routes")


@pytest.mark.parametrize(
    ("engine", "precision", "single"),
    [
        *(("ort", "int8", single) for single in ("guess", "graph")),
        *(("openvino", precision, single) for precision in ("fp32", "int8") for single in ("guess", "graph")),
        pytest.param("openvino", "bf16", "graph", marks=needs_bf16),
    ],
)
def test_other_engines_can_be_given_one(
    guessing_bundle: Path, tmp_path: Path, engine: str, precision: str, single: str
):
    mine = copy_of(guessing_bundle, tmp_path)
    report = build(mine, engine=engine, precision=precision, single=single)
    assert report.parity == "passed", report.lines()
    assert single in {piece.piece for piece in report.pieces}
    build(plain := copy_of(guessing_bundle, tmp_path / "plain"), engine=engine, precision=precision, single="chain")
    with (
        Predictor.load(mine, engine=f"{engine}-{precision}") as ours,
        Predictor.load(plain, engine=f"{engine}-{precision}") as theirs,
    ):
        assert (ours.engine_info.single, theirs.engine_info.single) == (single, "chain")
        batches = ours.engine_info.batches
        assert batches == ("chain" if single == "guess" else "graph" if engine == "ort" else "rows")
        encoded = ours.tokenizer.encode(TEXTS)
        for size in (1, 8):
            (logits, routes), (expected, expected_routes) = (one.run(encoded, size) for one in (ours, theirs))
            same = (routes == expected_routes).all(axis=1)
            assert same.all() or (precision != "fp32" and same.mean() > 0.9)
            np.testing.assert_allclose(logits[same], expected[same], atol=1e-5 if precision == "fp32" else 0.15)
            np.testing.assert_array_equal(logits[same].argmax(1), expected[same].argmax(1))


def test_the_command_takes_it_and_inspect_tells(guessing_bundle: Path, tmp_path: Path):
    mine = copy_of(guessing_bundle, tmp_path)
    result = CliRunner().invoke(main, ["build", str(mine), "--engine", "openvino", "--single", "guess"])
    assert result.exit_code == 0, result.output
    told = CliRunner().invoke(main, ["inspect", str(mine)]).output
    assert told.count("of inputs alone tries layers 2 3 4 first, as one engine") == 2


def test_where_there_is_nothing_to_guess_the_option_is_refused(
    bundle: Path, static_bundle: Path, guessing_bundle: Path, tmp_path: Path
):
    with pytest.raises(BundleError, match=r"--single graph: .*same route"):
        build(copy_of(static_bundle, tmp_path / "static"), engine="ort", single="graph")
    for folder, reason in ((bundle, "is not known"), (static_bundle, "same route")):
        with pytest.raises(BundleError, match=f"--single guess: .*{reason}.*leave it out"):
            build(copy_of(folder, tmp_path / reason), engine="ort", single="guess")
    with pytest.raises(EngineError, match="--single guess: not to be had with openvino-bf16"):
        build(copy_of(guessing_bundle, tmp_path), engine="openvino", precision="bf16", single="guess")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"guess": [5]}, r"guesses \[5\], expected layers from 1 to 4"),
        ({"guess": [2, 1]}, r"guesses \[2, 1\], expected layers"),
        ({"guess": None}, "has a guess without its route, or a route for none"),
        ({"single": "chain"}, "has a guess without its route, or a route for none"),
        ({"single": "graph"}, "has no graph"),
        ({"batches": "rows"}, "has no rows"),
        ({"batches": "guess"}, "not a manifest"),
    ],
)
def test_a_manifest_with_a_guess_that_is_no_route_is_refused(
    guessing_bundle: Path, tmp_path: Path, change: dict, reason: str
):
    mine = copy_of(guessing_bundle, tmp_path)
    change_manifest(mine, lambda manifest: manifest["engines"][0].update(change))
    with pytest.raises(BundleError, match=reason):
        read_bundle(mine)


def test_a_fixed_route_has_no_engine_that_decides(static_bundle: Path, tmp_path: Path):
    mine = copy_of(static_bundle, tmp_path)

    def pretend(manifest: dict) -> None:
        (engine,) = manifest["engines"]
        engine["single"], engine["files"]["graph"] = "graph", engine["files"]["head"]

    change_manifest(mine, pretend)
    with pytest.raises(BundleError, match="ort-fp32 has nothing to decide, and a graph for it"):
        read_bundle(mine)
    change_manifest(mine, lambda manifest: manifest["engines"][0].update(single="chain", batches="graph"))
    with pytest.raises(BundleError, match="ort-fp32 has a graph for batches, none for single inputs"):
        read_bundle(mine)


def test_without_an_engine_to_add_there_is_nothing_to_say_of_it(bundle: Path, tmp_path: Path):
    for options in ({"single": "graph"}, {"gates": "separate"}):
        with pytest.raises(BundleError, match=f"--{next(iter(options))}: .* say with --engine which"):
            build(copy_of(bundle, tmp_path / next(iter(options))), graph=True, **options)


@pytest.mark.parametrize("single", ["guess", "graph"])
def test_in_fp16_the_file_is_one_that_engines_take(guessing_bundle: Path, tmp_path: Path, single: str):
    """A GPU is to run it: here, whether it opens, and answers about as fp32 does."""
    mine = copy_of(guessing_bundle, tmp_path)
    build(mine, engine="ort-cuda", precision="fp16", single=single)
    manifest = read_bundle(mine).manifest
    file = mine / read_bundle(mine).engine("ort-cuda").files[single]
    onnx.checker.check_model(onnx.load(file), full_check=True)
    with Predictor.load(guessing_bundle) as predictor:
        batch = pad(predictor.tokenizer.encode(TEXTS[:1]))
        expected, _ = predictor.run(predictor.tokenizer.encode(TEXTS[:1]), routes=np.isin(range(1, 5), GUESS)[None])
    feed = {name: getattr(batch, name) for name in manifest.model.inputs}
    if single == "graph":
        route = np.where(np.isin(range(1, 5), GUESS), -np.inf, np.inf)
        feed |= {"gate_thresholds": route[None].astype(np.float32), "max_layers": np.array([4])}
    np.testing.assert_allclose(run(file, feed)[0], expected, atol=2e-2)


def test_what_lies_in_the_current_directory_is_not_in_the_way(guessing_bundle: Path, tmp_path: Path, monkeypatch):
    """The graph's weights lie beside it, in a file of this name."""
    (tmp_path / "graph.onnx.data").write_text("mine")
    monkeypatch.chdir(tmp_path)
    build(mine := copy_of(guessing_bundle, tmp_path / "bundle"), engine="openvino", single="graph")
    assert (tmp_path / "graph.onnx.data").read_text() == "mine"
    files = read_bundle(mine).manifest.files
    own = {file for file in files if file.startswith("engines/openvino-fp32/")}
    # The graph for batches uses the same weights.
    assert {Path(file).name for file in own} == {"report.json", "graph.onnx", "graph.onnx.data", "rows.onnx"}


def test_warm_is_every_layer_of_the_graph(graph_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """An engine prepares a branch when it first runs it."""
    load, ran = OrtEngine.load, []

    def recording(engine: OrtEngine, piece: str):
        loaded = load(engine, piece)
        return (lambda *inputs: ran.append(loaded(*inputs)) or ran[-1]) if piece == "graph" else loaded

    monkeypatch.setattr(OrtEngine, "load", recording)
    Predictor.load(graph_bundle)
    assert all(np.array(routes).all() for _, routes in ran)
    assert [len(routes) for _, routes in ran] == [1, 2]


def test_the_chain_is_loaded_only_for_whoever_asks_for_it(graph_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Batches need no second copy of the weights."""
    load, loaded = OrtEngine.load, []
    monkeypatch.setattr(OrtEngine, "load", lambda engine, piece: loaded.append(piece) or load(engine, piece))
    with Predictor.load(graph_bundle) as predictor:
        assert len(predictor(TEXTS)) == len(TEXTS)
        assert loaded == ["graph"]
        chain = predictor.load_chain()
        assert {"embeddings", "layer_01", "layer_04", "head"} < set(loaded)
        before = len(loaded)
        assert predictor.load_chain() is chain and len(loaded) == before
    with pytest.raises(EngineError, match="closed"):
        predictor.load_chain()


def test_batches_of_a_bundle_made_before_go_through_the_chain(graph_bundle: Path, fused_bundle: Path, tmp_path: Path):
    """Its graph takes one input, and its manifest says nothing about batches."""
    mine = copy_of(graph_bundle, tmp_path)
    manifest = read_bundle(mine).manifest
    pieces = {piece: mine / name for piece, name in manifest.pieces.items()}
    join_conditional(pieces, manifest.model, mine / manifest.engines[0].files["graph"])
    reseal(mine)
    change_manifest(mine, lambda manifest: manifest["engines"][0].pop("batches"))
    with Predictor.load(mine) as ours, Predictor.load(fused_bundle) as theirs:
        for one, other in zip(ours(TEXTS), theirs(TEXTS), strict=True):
            assert (one.label, one.layers) == (other.label, other.layers)


def test_a_guess_that_cannot_be_right_is_not_made(guessing_bundle: Path):
    """Fewer layers are allowed than it has: then it would only cost time."""
    ours = Predictor.load(guessing_bundle)
    tried, guess = [], ours.gated.guess
    ours.gated = replace(ours.gated, guess=lambda *inputs: tried.append(1) or guess(*inputs))
    ours(TEXTS[0], max_layers=2)
    assert not tried
    ours(TEXTS[0], max_layers=3)
    assert tried


def test_what_could_not_be_loaded_once_is_not_left_out_from_then_on(graph_bundle: Path, monkeypatch):
    with Predictor.load(graph_bundle, router="full", warm_up=False) as ours:
        load = ours.engine.load

        def fails(piece: str):
            if piece == "graph":
                raise EngineError("not now")
            return load(piece)

        monkeypatch.setattr(ours.engine, "load", fails)
        for _ in range(2):
            with pytest.raises(EngineError, match="not now"):
                ours(TEXTS[0], router="gates")
        monkeypatch.undo()
        assert ours(TEXTS[0], router="gates").label and ours.gated.graph is not None
