"""Parity passes what is right and fails what is wrong, by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hadskip_export import build
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines import is_reduced
from hadskip_export.runtime.engines import openvino as openvino_engine
from hadskip_export.runtime.tokenization import Encoded, pad
from hadskip_export.support.errors import HadskipError
from hadskip_export.verification.parity import ParityReport, compare, count_flips
from hadskip_export.verification.references import OnnxReference
from hadskip_export.verification.torch_reference import TorchReference
from tests.conftest import STATIC_ROUTE, needs_bf16, sentences
from tests.exporters.changing import (
    CUTS,
    WEIGHTS,
    add_to_weights,
    change_graph,
    change_tensors,
    copy_of,
    initializers,
    reseal,
)

TEXTS = ["", *(text for text, _ in sentences(12, 21)), ("a good film", "a bad plot")]
EPSILON = 0.1
ZEROS = np.zeros(4, np.float32)


def change_piece(bundle: Path, piece: str, change) -> None:
    change_graph(bundle / "model" / f"{piece}.onnx", change)


@pytest.fixture(scope="module")
def reference(bundle: Path) -> OnnxReference:
    """Of the sound bundle, whatever is done to a copy."""
    return OnnxReference(read_bundle(bundle))


@pytest.fixture(scope="module")
def inputs(bundle: Path) -> list[Encoded]:
    with Predictor.load(bundle) as predictor:
        return predictor.tokenizer.encode(TEXTS)


def compared(reference, bundle: Path, inputs: list[Encoded], engine: str | None = None) -> ParityReport:
    with Predictor.load(bundle, engine=engine, allow_failed=True) as predictor:
        return compare(reference, predictor, inputs)


# Counting flips


def slow_flips(margins, routes, got) -> int:
    flips = 0
    for row in range(len(margins)):
        for layer in range(margins.shape[1]):
            if routes[row, layer] != got[row, layer]:
                flips += abs(margins[row, layer]) > EPSILON
                break
    return flips


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 5))
def test_flips_are_those_of_a_slow_loop(data, inputs: int, layers: int):
    margin = st.floats(-1, 1, width=32) | st.sampled_from([0.0, EPSILON, -EPSILON, 0.11, -0.11])
    margins = data.draw(arrays.arrays(np.float64, (inputs, layers), elements=margin))
    routes = data.draw(arrays.arrays(bool, (inputs, layers)))
    got = data.draw(arrays.arrays(bool, (inputs, layers)))
    assert count_flips(margins, routes, got, np.full(layers, EPSILON)) == slow_flips(margins, routes, got)
    assert count_flips(margins, routes, routes, np.full(layers, EPSILON)) == 0


def test_only_the_first_difference_of_an_input_counts():
    margins = np.array([[0.0, 5.0], [5.0, 0.0], [0.0, 0.0]])
    routes = np.zeros((3, 2), bool)
    assert count_flips(margins, routes, ~routes, np.full(2, EPSILON)) == 1


# Comparing


@pytest.fixture(scope="module")
def every_cut(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every cut of two engines in fp32."""
    out = copy_of(bundle, tmp_path_factory.mktemp("every_cut"))
    for engine in ("ort", "openvino"):
        for cut in CUTS:
            build(out, engine=engine, cut=cut)
    return out


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_sound_engine_passes(engine: str, cut: str, every_cut: Path, reference, inputs):
    report = compared(reference, every_cut, inputs, f"{engine}-fp32-{cut}")
    assert report.parity == "passed"
    assert report.first_bad_piece is None
    assert (report.route_agreement, report.label_agreement, report.flips) == (1, 1, 0)
    assert report.logits_largest < 1e-5
    assert report.texts == len(TEXTS)
    layers = [f"layer_0{number}" for number in range(1, 5)]
    gates = [f"gate_0{number}" for number in range(1, 5)] if cut != "layers" else ["gates"]
    gates += [f"gates in {layer}" for layer in layers[:3]] if cut == "layers" else []
    wholes = {"ort": ["whole"], "openvino": ["whole", "whole_alone"]}[engine] if cut == "whole" else []
    assert {piece.piece for piece in report.pieces} == {"embeddings", *layers, *gates, "head", "full", *wholes}
    assert all(piece.mean <= piece.largest <= piece.tolerance for piece in report.pieces)
    assert text.parity(report)[-1].strip() == "parity passed"


def test_what_a_build_reports_is_what_it_wrote(bundle: Path):
    written = json.loads((bundle / "engines" / "ort-fp32-gates" / "report.json").read_text())
    assert written["reference"] == "PyTorch fp32"
    assert written["texts"] == 40
    assert written["first_bad_piece"] is None


@pytest.mark.parametrize("amount", [1e-2, float("nan")])
@pytest.mark.parametrize("piece", ["embeddings", "layer_01", "layer_04", "gate_03", "head", "full"])
def test_one_altered_piece_fails_and_is_named(
    bundle: Path, tmp_path: Path, reference, inputs, piece: str, amount: float
):
    copy = copy_of(bundle, tmp_path)
    change_piece(copy, piece, add_to_weights(amount))
    report = compared(reference, copy, inputs)
    assert report.parity == "failed"
    assert report.first_bad_piece == piece
    assert [found.piece for found in report.pieces if not found.passed] == [piece]
    assert any(piece in line and line.endswith("FAILED") for line in text.parity(report))
    assert text.parity(report)[-1].strip() == f"parity FAILED at {piece}"


SLOW = [pytest.param("openvino", cut, marks=pytest.mark.slow) for cut in ("gates", "layers")]
IN_ORT_AND_OPENVINO = pytest.mark.parametrize(
    ("engine", "cut"), [*(("ort", cut) for cut in CUTS), ("openvino", "whole"), *SLOW]
)

# A tensor that every cut reads, by the name of the piece that it is a part of
TENSORS = {
    "embeddings.word.weight": "embeddings",
    "layers.0.up.weight": "layer_01",
    "layers.2.query_key_value.bias": "layer_03",
    "layers.3.key_value.weight": "layer_04",
    "head.classifier.weight": "head",
    "full.layers.1.down.weight": "full",
}


@IN_ORT_AND_OPENVINO
@pytest.mark.parametrize("tensor", [*TENSORS, "gates.hidden.weight"])
def test_a_damaged_tensor_is_found_by_the_name_of_its_piece_in_every_cut(
    every_cut: Path, tmp_path: Path, reference, inputs, engine: str, cut: str, tensor: str
):
    """However the cut's own graphs read it."""
    mine = copy_of(every_cut, tmp_path)

    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[tensor][...] += np.float32(0.05) * np.sign(tensors[tensor] + 1e-9)

    change_tensors(mine, damage, WEIGHTS)
    report = compared(reference, mine, inputs, f"{engine}-fp32-{cut}")
    expected = TENSORS.get(tensor, "gates" if cut == "layers" else "gate_01")
    assert report.first_bad_piece == expected
    failed = {piece.piece for piece in report.pieces if not piece.passed}
    assert failed == ({expected} if tensor in TENSORS else {name for name in failed if name.startswith("gate")})


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("weight", "found"), [("layer_02/", None), ("head/", None), ("gate_03/", "routes")])
def test_parity_names_a_whole_graph_in_which_something_is_wrong(
    every_cut: Path, tmp_path: Path, reference, inputs, engine: str, weight: str, found: str | None
):
    """Its pieces are sound."""
    for piece in {"ort": ["whole"], "openvino": ["whole", "whole_alone"]}[engine]:
        mine = copy_of(every_cut, tmp_path / piece)
        name = f"{engine}-fp32-whole"
        change_graph(mine / read_bundle(mine).engine(name).files[piece], scale(weight))
        report = compared(reference, mine, inputs, name)
        failed = [one.piece for one in report.pieces if not one.passed]
        if found is None:
            assert failed == [piece] == [report.first_bad_piece]
        else:
            way = " alone" if piece == "whole_alone" else ""
            assert failed == [] and report.first_bad_piece == f"{found}{way}"


def scale(starting: str):
    """Turns the matrices of a graph whose names start so around, and makes them larger."""

    def change(model) -> None:
        found = [one for one in initializers(model.graph) if one.name.startswith(starting) and len(one.dims) == 2
                 and not one.name.endswith("/one")]  # fmt: skip
        assert found
        for tensor in found:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(-1.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_parity_finds_a_whole_graph_that_says_what_it_did_not_do(
    every_cut: Path, tmp_path: Path, reference, inputs, engine: str
):
    mine, name = copy_of(every_cut, tmp_path), f"{engine}-fp32-whole"

    def change(model) -> None:
        (column,) = (one for one in model.graph.initializer if one.name == "layer_03/one")  # where it says that it ran
        column.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(column) * 0, column.name))

    change_graph(mine / read_bundle(mine).engine(name).files["whole"], change)
    report = compared(reference, mine, inputs, name)
    assert report.parity == "failed" and report.first_bad_piece in ("whole", "routes")


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_gate_that_is_wrong_in_one_layer_only_is_named(
    every_cut: Path, tmp_path: Path, reference, inputs, engine: str
):
    mine, name = copy_of(every_cut, tmp_path), f"{engine}-fp32-layers"
    change_graph(mine / read_bundle(mine).engine(name).files["layer_02"], scale("gates/weight"))
    report = compared(reference, mine, inputs, name)
    assert [piece.piece for piece in report.pieces if not piece.passed] == ["gates in layer_02"]
    assert report.first_bad_piece == "gates in layer_02"


@pytest.mark.parametrize("piece", ["layer_02", "layer_04", "embeddings", "head", "full"])
@IN_ORT_AND_OPENVINO
def test_a_damaged_graph_is_named_in_every_cut(
    every_cut: Path, tmp_path: Path, reference, inputs, engine: str, cut: str, piece: str
):
    mine, name = copy_of(every_cut, tmp_path), f"{engine}-fp32-{cut}"
    start = "layer/" if cut == "layers" and piece == "layer_02" else ""  # there the gates have a name of their own
    change_graph(mine / read_bundle(mine).engine(name).files[piece], add_to_weights(1e-2, start))
    report = compared(reference, mine, inputs, name)
    assert report.first_bad_piece == piece
    failed = {one.piece for one in report.pieces if not one.passed}
    assert failed - {"whole", "whole_alone"} == {piece}  # a whole graph is compared with the engine's own pieces


def test_the_first_of_several_bad_pieces_is_named(bundle: Path, tmp_path: Path, reference, inputs):
    copy = copy_of(bundle, tmp_path)
    for piece in ("head", "layer_03"):
        change_piece(copy, piece, add_to_weights(1e-2))
    assert compared(reference, copy, inputs).first_bad_piece == "layer_03"


def test_sound_pieces_in_a_chain_that_is_not_fail_as_a_whole(bundle: Path, reference, inputs):
    """Here the pieces are right and the way they are put together is wrong."""
    with Predictor.load(bundle) as predictor:
        chain = predictor.gated
        predictor.gated = replace(chain, head=lambda hidden: chain.head(hidden) + np.float32(1e-3))
        report = compare(reference, predictor, inputs)
        assert all(piece.passed for piece in report.pieces)
        assert report.first_bad_piece == "logits"
        predictor.gated = replace(chain, layers=dict(enumerate(reversed(chain.layers.values()))))
        assert compare(reference, predictor, inputs).first_bad_piece is not None
        predictor.gated = replace(chain, gates=chain.gates[::-1])
        report = compare(reference, predictor, inputs)
        assert all(piece.passed for piece in report.pieces)
        assert report.first_bad_piece == "routes"
        assert report.flips > 0


def test_a_threshold_of_one_s_own_does_not_touch_the_comparison(bundle: Path, reference, inputs):
    with Predictor.load(bundle, gate_threshold=1e9, router="full") as predictor:
        assert compare(reference, predictor, inputs).parity == "passed"


def test_nothing_to_compare_on_is_an_error(bundle: Path, reference):
    with pytest.raises(HadskipError, match="no text"):
        compared(reference, bundle, [])


# A static route

STATIC_PIECES = ["embeddings", "layer_01", "layer_03", "head", "full"]


@pytest.fixture(scope="module")
def static_reference(static_source) -> TorchReference:
    return TorchReference(static_source.model, static_source.full)


def test_a_static_route_passes_on_the_pieces_it_has(static_reference, static_bundle: Path, inputs):
    for reference in (static_reference, OnnxReference(read_bundle(static_bundle))):
        report = compared(reference, static_bundle, inputs)
        assert (report.parity, report.route_agreement, report.flips) == ("passed", 1.0, 0)
        assert [piece.piece for piece in report.pieces] == STATIC_PIECES
        assert all(piece.largest < 1e-5 for piece in report.pieces)
        assert report.tolerance.margins == (1e-3,) * 4
        assert report.logits_largest < 1e-5


@pytest.mark.parametrize("piece", STATIC_PIECES)
def test_one_altered_piece_of_a_static_bundle_fails_and_is_named(
    static_bundle: Path, tmp_path: Path, static_reference, inputs, piece: str
):
    copy = copy_of(static_bundle, tmp_path)
    change_piece(copy, piece, add_to_weights(1e-2))
    report = compared(static_reference, copy, inputs)
    assert [found.piece for found in report.pieces if not found.passed] == [piece] == [report.first_bad_piece]


@pytest.mark.parametrize("route", [[1], [1, 2], [1, 2, 3]])
def test_another_static_route_fails(static_bundle: Path, tmp_path: Path, static_reference, inputs, route: list[int]):
    """Its layers are there and sound: layer 2 is a copy of layer 1."""
    copy = copy_of(static_bundle, tmp_path)

    def change(plain: dict) -> None:
        plain["router"]["route"] = route
        for files in (plain["pieces"], plain["engines"][0]["files"]):
            files["layer_02"] = files["layer_01"]

    reseal(copy, change)
    report = compared(static_reference, copy, inputs)
    assert (report.parity, report.route_agreement, report.flips) == ("failed", 0.0, len(inputs))


def assert_alike(ours: list[np.ndarray], theirs: list[np.ndarray], whole: int) -> None:
    """Of states, the first so many with all their tokens; of those behind the last layer ours may be one token's."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape or (place >= whole and a.shape[1] == 1)
        np.testing.assert_allclose(a, b[:, : a.shape[1]], atol=1e-5)


def test_both_references_trace_a_static_route_alike(static_bundle: Path, static_reference, inputs):
    chosen = np.array([layer in STATIC_ROUTE for layer in range(1, 5)])
    onnx_reference = OnnxReference(read_bundle(static_bundle))
    for encoded in inputs:
        ours, theirs = (r.trace(pad([encoded]), ZEROS) for r in (onnx_reference, static_reference))
        for trace in (ours, theirs):
            assert trace.route.tolist() == chosen.tolist()
            assert trace.margins.tolist() == np.where(chosen, 20.0, -20.0).tolist()
            assert trace.margins.dtype == np.float32
        for name in ("logits", "full_logits"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)
        last = STATIC_ROUTE[-1]
        assert_alike(ours.states, theirs.states, whole=last)
        on_route = [[trace.layer_outputs[index] for index in np.flatnonzero(chosen)] for trace in (ours, theirs)]
        assert_alike(*on_route, whole=len(STATIC_ROUTE) - 1)


# References


def test_both_references_trace_alike(source, reference, inputs):
    torch_reference = TorchReference(source.model, source.full)
    for encoded in inputs:
        batch = pad([encoded])
        ours, theirs = (r.trace(batch, ZEROS) for r in (reference, torch_reference))
        assert ours.route.tolist() == theirs.route.tolist() == (theirs.margins > 0).tolist()
        assert_alike(ours.states, theirs.states, whole=4)
        assert_alike(ours.layer_outputs, theirs.layer_outputs, whole=3)
        for name in ("margins", "logits", "full_logits"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)


def test_a_skipped_layer_leaves_the_state_as_it_was(source, inputs):
    trace = TorchReference(source.model, source.full).trace(pad([inputs[3]]), ZEROS)
    assert 0 < trace.route.sum() < 4
    for index, ran in enumerate(trace.route):
        after = trace.layer_outputs[index] if ran else trace.states[index]
        np.testing.assert_array_equal(trace.states[index + 1], after)


# hidden_states in bfloat16: pieces that compute in fp32 are held to it on what is rounded


@pytest.fixture(scope="module")
def in_bf16(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mine = copy_of(bundle, tmp_path_factory.mktemp("bf16"))
    build(mine, engine="openvino", precision="bf16", cut="gates")
    return mine


def compared_in_bf16(reference, bundle: Path, inputs: list[Encoded]) -> ParityReport:
    with Predictor.load(bundle, engine="openvino-bf16") as predictor:
        return compare(reference, predictor, inputs)


@needs_bf16
def test_the_sound_pieces_of_bf16_are_as_near_as_those_of_fp32(in_bf16: Path, reference, inputs):
    report = compared_in_bf16(reference, in_bf16, inputs)
    assert report.parity == "passed"
    found = {piece.piece: piece for piece in report.pieces if not is_reduced(piece.piece)}
    assert set(found) == {"embeddings", *(f"gate_0{number}" for number in range(1, 5)), "head"}
    for piece in found.values():
        assert piece.largest < 1e-5 < piece.tolerance <= 1e-3


@needs_bf16
@pytest.mark.parametrize("piece", ["embeddings", "gate_02", "head"])
def test_a_wrong_piece_of_fp32_among_those_of_bf16_is_named(in_bf16: Path, tmp_path: Path, reference, inputs, piece):
    mine = copy_of(in_bf16, tmp_path)
    change_piece(mine, piece, add_to_weights(5e-3))
    assert compared_in_bf16(reference, mine, inputs).first_bad_piece == piece


@needs_bf16
def test_gates_in_bf16_are_told_from_those_in_fp32(in_bf16: Path, reference, inputs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino_engine, "is_reduced", lambda piece: piece != "embeddings")
    assert compared_in_bf16(reference, in_bf16, inputs).first_bad_piece.startswith("gate")
