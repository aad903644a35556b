"""`validate`: the bundle as it was built passes; anything else that changes an answer does not."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hadskip_export import build, validate
from hadskip_export.exporters import amend as additions
from hadskip_export.report import text
from hadskip_export.report.plain import to_json
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.engines.ort import OrtEngine
from hadskip_export.support.errors import BundleError, DataError
from tests.conftest import sentences, write_csv
from tests.exporters.changing import add_to_weights, change_graph, copy_of, reseal
from tests.runtime.oracle import Oracle

ROWS = [(text, "yes" if label == "positive" else "no") for text, label in sentences(30, 31)]


def change_piece(bundle: Path, piece: str, change) -> None:
    change_graph(bundle / "model" / f"{piece}.onnx", change)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("labelled") / "data.csv", ROWS)


@pytest.mark.parametrize("layout", ["bundle", "layers_bundle", "whole_bundle", "openvino_bundle", "static_bundle"])
def test_a_sound_bundle_passes(layout: str, request: pytest.FixtureRequest):
    found = validate(request.getfixturevalue(layout))
    assert found.passed
    assert found.golden.passed
    assert found.golden.texts == 64
    assert found.golden.flips == 0
    assert found.golden.logits_largest < 1e-5
    assert found.parity.parity == "passed"
    assert found.parity.reference.startswith("ONNX pieces")
    assert found.data is None
    assert "golden: 64 texts, 0 flips" in text.validation(found)[0]


def test_labels_in_another_order_than_when_it_was_built_do_not_pass(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    reseal(copy, lambda plain: plain["model"]["labels"].reverse())
    found = validate(copy)
    assert not found.passed and not found.golden.labels_agree
    assert "labels other than when it was built (FAILED)" in text.validation(found)[0]


def test_the_metric_is_that_of_a_slow_computation(bundle: Path, data: Path, source, model_folder: Path):
    oracle = Oracle(source, model_folder)
    gated, full = ([ask(text) for text, _ in ROWS] for ask in (oracle.gates, oracle.full))
    expected = [label for _, label in ROWS]
    found = validate(bundle, data=data)
    assert found.passed
    assert found.data.texts == found.parity.texts == len(ROWS)
    assert found.data.metric == "accuracy"
    assert found.data.value == np.mean([a.label == label for a, label in zip(gated, expected, strict=True)])
    assert found.data.full_value == np.mean([a.label == label for a, label in zip(full, expected, strict=True)])
    assert found.data.label_agreement == np.mean([a.label == b.label for a, b in zip(gated, full, strict=True)])
    assert found.data.routes.mean_layers == pytest.approx(np.mean([len(answer.layers) for answer in gated]))
    assert f"accuracy {found.data.value:.4f}" in "\n".join(text.validation(found))


def test_data_is_answered_on_the_static_route(static_bundle: Path, data: Path, static_source, model_folder: Path):
    oracle = Oracle(static_source, model_folder)
    answers = [oracle.forced(text, [True, False, True, False]) for text, _ in ROWS]
    found = validate(static_bundle, data=data)
    assert found.passed
    assert found.data.value == np.mean([a.label == label for a, (_, label) in zip(answers, ROWS, strict=True)])
    assert found.data.routes.commonest == [((1, 3), 1.0)]
    full = [oracle.full(text) for text, _ in ROWS]
    assert len(found.data.flips) == sum(a.label != b.label for a, b in zip(answers, full, strict=True))


@pytest.mark.parametrize("piece", ["embeddings", "layer_01", "layer_03", "head"])
def test_altered_weights_of_a_static_bundle_fail_although_the_digests_fit(
    static_bundle: Path, tmp_path: Path, piece: str
):
    copy = copy_of(static_bundle, tmp_path)
    change_piece(copy, piece, add_to_weights(0.5))
    assert not validate(copy).golden.passed


def lean_the_other_way(bundle: Path, texts: list[str]) -> None:
    """Gives the head a bias with which, with gates, half of `texts` change their label; full BERT stays as it is."""
    with Predictor.load(bundle) as predictor:
        odds = [answer.probabilities["yes"] / answer.probabilities["no"] for answer in predictor(texts)]

    def shift(model: onnx.ModelProto) -> None:
        (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[-1].input[2])
        moved = numpy_helper.to_array(bias) + np.array([0, -np.log(np.median(odds))], np.float32)
        bias.CopyFrom(numpy_helper.from_array(moved, bias.name))

    change_piece(bundle, "head", shift)


def test_classes_and_flips_are_those_of_a_slow_computation(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    lean_the_other_way(copy, [text for text, _ in ROWS])
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    with Predictor.load(copy) as predictor:
        answers = [(predictor(text, router="full").label, predictor(text).label, label) for text, label in ROWS]
    found = validate(copy, data=file).data
    assert [(flip.line, flip.text, flip.full, flip.gates, flip.expected) for flip in found.flips] == [
        (1 + 2 * row, ROWS[row][0], *answer) for row, answer in enumerate(answers) if answer[0] != answer[1]
    ]
    assert 10 < len(found.flips) < len(ROWS)
    assert found.better == sum(gates == label != full for full, gates, label in answers) > 0
    assert found.worse == sum(full == label != gates for full, gates, label in answers) > 0
    assert sum("->" in line for line in text.labelled_data(found)) == 10
    for scores, column in ((found.full_classes, 0), (found.classes, 1)):
        for score in scores:
            hits = sum(answer[column] == answer[2] == score.label for answer in answers)
            claims = sum(answer[column] == score.label for answer in answers)
            assert score.support == sum(label == score.label for _, label in ROWS)
            assert score.precision == (hits / claims if claims else None)
            assert score.recall == hits / score.support


def test_without_full_bert_there_is_nothing_to_flip_against(bundle: Path, data: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    reseal(copy, lambda plain: plain["engines"][0]["files"].pop("full"))
    found = validate(copy, data=data)
    assert found.data.classes == validate(bundle, data=data).data.classes
    assert found.data.full_value is found.data.full_classes is found.data.flips is found.data.better is None
    assert "full BERT" not in "\n".join(text.labelled_data(found.data))


def test_json_is_the_whole_of_it(bundle: Path, data: Path):
    found = validate(bundle, data=data)
    plain = json.loads(to_json(found))
    assert plain["passed"] is True
    assert plain["golden"]["texts"] == 64
    assert [piece["piece"] for piece in plain["parity"]["pieces"]] == [piece.piece for piece in found.parity.pieces]
    assert plain["data"]["value"] == found.data.value
    assert plain["data"]["flips"] == [vars(flip) for flip in found.data.flips]
    assert plain["data"]["full_classes"] == [vars(score) for score in found.data.full_classes]


@pytest.mark.parametrize("piece", ["embeddings", "layer_02", "gate_02", "head"])
def test_altered_weights_fail_although_the_digests_fit(bundle: Path, tmp_path: Path, piece: str):
    copy = copy_of(bundle, tmp_path)
    change_piece(copy, piece, add_to_weights(0.5))
    found = validate(copy)
    assert not found.passed
    assert not found.golden.passed
    assert "FAILED" in text.validation(found)[0]


def test_weights_that_give_nan_fail(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    change_piece(copy, "head", add_to_weights(float("nan")))
    assert not validate(copy).passed


def test_golden_answers_are_those_of_the_thresholds_they_were_recorded_at(bundle: Path, tmp_path: Path):
    """The operating points may change; the answers that were recorded do not."""
    copy = copy_of(bundle, tmp_path)
    reseal(copy, lambda plain: plain["points"][0].update(thresholds=[1.0] * 4))
    assert validate(copy).passed


def test_an_engine_marked_failed_is_checked_all_the_same_and_does_not_pass(bundle: Path, tmp_path: Path):
    """Whoever loads it is refused, whatever the golden texts say."""
    copy = copy_of(bundle, tmp_path)
    reseal(copy, lambda plain: plain["engines"][0].update(parity="failed", first_bad_piece="labels"))
    found = validate(copy)
    assert (found.passed, found.failed_at) == (False, "labels")
    assert found.golden.passed and found.parity.parity == "passed"
    assert validate(bundle).failed_at is None


@pytest.fixture
def never_checked(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with an int8 engine that was built on a machine that cannot run it."""
    mine = copy_of(bundle, tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(OrtEngine, "why_not_here", staticmethod(lambda: "no such device"))
        assert build(mine, engine="ort", precision="int8", cut="gates") is None
    assert read_bundle(mine).engine("ort-int8").parity == "unverified"
    return mine


def test_an_engine_that_was_never_checked_is_checked_for_good(never_checked: Path, bundle: Path, tmp_path: Path):
    assert validate(never_checked, engine="ort-int8").passed
    settled = read_bundle(never_checked)
    beside = copy_of(bundle, tmp_path / "beside")
    build(beside, engine="ort", precision="int8", cut="gates")
    assert settled.engine("ort-int8") == read_bundle(beside).engine("ort-int8")  # as if it had been built here
    assert settled.engine("ort-int8").tolerance.logits > read_bundle(bundle).engine().tolerance.logits
    assert validate(never_checked, engine="ort-int8").passed
    assert read_bundle(never_checked).manifest == settled.manifest


def test_what_somebody_else_did_meanwhile_stands(never_checked: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the first look at the bundle and the lock the engine is made anew."""
    really = additions._alone

    def late(path: Path, patience: float = 0):
        with monkeypatch.context() as once:
            once.setattr(additions, "_alone", really)
            build(path, engine="ort", precision="int8", cut="gates")
        return really(path, patience)

    monkeypatch.setattr(additions, "_alone", late)
    assert validate(never_checked, engine="ort-int8").passed
    info = read_bundle(never_checked).engine("ort-int8")
    assert (info.folder, info.parity) == ("engines/ort-int8-gates-2", "passed")


def test_one_that_turns_out_to_be_wrong_is_marked(never_checked: Path):
    file = never_checked / read_bundle(never_checked).engine("ort-int8").files["layer_02"]
    change_graph(file, add_to_weights(float("nan")))
    assert not validate(never_checked, engine="ort-int8").passed
    assert read_bundle(never_checked).engine("ort-int8").first_bad_piece == "layer_02"
    with pytest.raises(BundleError, match="failed its parity check at layer_02"):
        Predictor.load(never_checked, engine="ort-int8")


def test_nothing_can_be_settled_where_nothing_can_be_written(never_checked: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BundleError, match=r"ort-int8-gates was never checked, .*make it writable for this once"):
        validate(never_checked, engine="ort-int8")
    assert validate(never_checked).passed  # of an engine that was checked nothing is written


def test_columns_have_the_names_they_are_given(bundle: Path, tmp_path: Path):
    rows = [(label, "x", text) for text, label in ROWS[:5]]
    file = write_csv(tmp_path / "other.csv", rows, ("answer", "id", "words"))
    assert validate(bundle, data=file, text_column="words", label_column="answer").data.texts == 5
    with pytest.raises(DataError, match="no column 'wrong'"):
        validate(bundle, data=file, text_column="wrong", label_column="answer")


def test_pairs_are_pairs(bundle: Path, tmp_path: Path, source, model_folder: Path):
    rows = [(text, ROWS[-1 - i][0], label) for i, (text, label) in enumerate(ROWS)]
    file = write_csv(tmp_path / "pairs.csv", rows, ("premise", "hypothesis", "label"))
    oracle = Oracle(source, model_folder)
    expected = np.mean([oracle.gates((premise, hypothesis)).label == label for premise, hypothesis, label in rows])
    assert validate(bundle, data=file).data.value == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [([("good", "maybe")], "'maybe' is not known; the model has no, yes"), ([], "no rows")],
    ids=["unknown label", "no rows"],
)
def test_data_that_cannot_be_used_is_refused(bundle: Path, tmp_path: Path, rows, message: str):
    with pytest.raises(DataError, match=message):
        validate(bundle, data=write_csv(tmp_path / "data.csv", rows))


def test_an_engine_the_bundle_lacks_is_refused(bundle: Path):
    with pytest.raises(BundleError, match="trt"):
        validate(bundle, engine="trt")
