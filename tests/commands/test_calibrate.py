"""`calibrate` against the search that training does in PyTorch, and against what the bundle then runs."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hadskip_export import build, calibrate, validate
from hadskip_export.cli import main
from hadskip_export.exporters.write import Source
from hadskip_export.report import text
from hadskip_export.runtime import Predictor, read_bundle
from hadskip_export.runtime.programs.chain import Chain
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import BudgetError, DataError, EngineError
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.outcomes import find_outcomes
from hadskip_export.tuning.gauge import Gauge, _Asked
from hadskip_export.tuning.loss import Judge, Loss
from tests.conftest import make_source, sentences, write_csv, write_cut
from tests.exporters.changing import copy_of

TEXTS = [text for text, _ in sentences(60, 7)]
BUDGETS = (1.0, 2.5, 0.75)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", [(text,) for text in TEXTS], ("text",))


@pytest.fixture(scope="module")
def fitted(source: Source) -> list[float]:
    """What training finds for these texts."""
    encoded = Tokenizer(source.tokenizer, source.max_length).encode(TEXTS)
    data = Dataset(encoded, None, np.zeros(len(TEXTS), np.int64))
    return [find_outcomes(source.model, data).threshold(budget) for budget in (1.0, 2.5, 3.0)]


def mean_layers(folder: Path, threshold: float) -> float:
    with Predictor.load(folder, gate_threshold=threshold) as predictor:
        return float(np.mean([len(prediction.layers) for prediction in predictor(TEXTS)]))


@pytest.mark.parametrize("name", ["bundle", "layers_bundle", "whole_bundle"])
def test_thresholds_are_those_that_training_finds_for_these_texts(
    name: str, file: Path, source: Source, fitted: list[float], request: pytest.FixtureRequest
):
    """However finely the model is cut; a pinch apart, for the engine's margins are not PyTorch's to the last bit."""
    folder: Path = request.getfixturevalue(name)
    found = calibrate(folder, file, BUDGETS)
    assert [row.budget for row in found.rows] == [None, 1.0, 2.5, 3.0]
    assert [row.threshold for row in found.rows[1:]] == pytest.approx(fitted, abs=1e-4)
    for row in found.rows[1:]:
        assert row.routes.mean_layers == mean_layers(folder, row.threshold) == pytest.approx(row.budget, abs=0.1)
    built = found.rows[0]
    assert (built.threshold, built.metric, found.texts) == (0.0, None, len(TEXTS))


def test_one_threshold_does_not_depend_on_the_others_asked_for(bundle: Path, file: Path):
    together = [row.threshold for row in calibrate(bundle, file, BUDGETS).rows[1:]]
    assert [calibrate(bundle, file, [budget]).rows[1].threshold for budget in BUDGETS] == together


def test_the_bundles_own_budget_is_the_default(bundle: Path, file: Path):
    assert [row.budget for row in calibrate(bundle, file).rows] == [None, 2.0]


def test_pairs_and_a_single_input_will_do(bundle: Path, tmp_path: Path):
    """Of which half a layer is not to be had: the side of more layers is taken, and that it is off is said."""
    found = calibrate(bundle, write_csv(tmp_path / "pairs.csv", [("good", "bad film")], ("text", "text2")), [4, 3.5])
    assert found.texts == 1 and [row.routes.mean_layers for row in found.rows[1:]] == [4, 4]
    assert ["no nearer" in line for line in text.calibration(found)[3:5]] == [False, True]
    with Predictor.load(bundle) as predictor:
        assert len(predictor(("good", "bad film")).layers) == found.rows[0].routes.mean_layers


def test_a_budget_that_the_texts_do_not_keep_becomes_no_operating_point(bundle: Path, tmp_path: Path):
    """Who asks for 3.5 layers by it would run 4, and nobody would know."""
    copy = copy_of(bundle, tmp_path)
    pair = write_csv(tmp_path / "pairs.csv", [("good", "bad film")], ("text", "text2"))
    with pytest.raises(BudgetError, match=r"near a budget of 3.5 \(nearest: 4.00\) .* nothing was written"):
        calibrate(copy, pair, [4, 3.5], write=True)
    assert read_bundle(copy).manifest == read_bundle(bundle).manifest


# Labels


def test_labels_give_the_metric_and_nothing_else(bundle: Path, file: Path, tmp_path: Path):
    labelled = write_csv(tmp_path / "labelled.csv", [(text, "yes") for text in TEXTS])
    plain, found = calibrate(bundle, file), calibrate(bundle, labelled)
    assert [row.threshold for row in found.rows] == [row.threshold for row in plain.rows]
    with Predictor.load(bundle, gate_threshold=found.rows[1].threshold) as predictor:
        said_yes = [prediction.label == "yes" for prediction in predictor(TEXTS)]
    assert found.rows[1].metric == np.mean(said_yes) and 0 < np.mean(said_yes) < 1


def test_what_only_looks_like_labels_is_left_alone_unless_it_is_named(
    bundle: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other = write_csv(tmp_path / "other.csv", [(text, "drama") for text in TEXTS], ("text", "category"))
    assert calibrate(bundle, other) == calibrate(bundle, file)
    assert "other.csv: its labels are not those of the model, which has no, yes" in capsys.readouterr().err
    with pytest.raises(DataError, match="line 2: label 'drama' is not known"):
        calibrate(bundle, other, label_column="category")


# What cannot be


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_margins_that_are_no_numbers_are_an_error_of_the_engine(
    wrong: float, bundle: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Chain.run

    def broken(chain, batch, router):
        answer = run(chain, batch, router)
        if isinstance(router, _Asked):
            router.margins[-1, 1] = wrong
        return answer

    monkeypatch.setattr(Chain, "run", broken)
    with pytest.raises(EngineError, match="ort-fp32-gates: the gates' margins are no numbers here; try another engine"):
        calibrate(bundle, file)


def test_what_cannot_be_calibrated_is_refused(bundle: Path, static_bundle: Path, file: Path, tmp_path: Path):
    with pytest.raises(BudgetError, match="static route and no threshold"):
        calibrate(static_bundle, file)
    with pytest.raises(BudgetError, match="--budget 5: the model has 4 layers"):
        calibrate(bundle, file, [5])
    with pytest.raises(DataError, match=r"cannot tell which of 'x' to use; .* name it with --text-column"):
        calibrate(bundle, write_csv(tmp_path / "x.csv", [("good",)], ("x",)))


# Operating points


def layers_of(predictor: Predictor, **options) -> float:
    return float(np.mean([len(prediction.layers) for prediction in predictor(TEXTS, **options)]))


@pytest.mark.parametrize("name", ["bundle", "layers_bundle", "whole_bundle"])
def test_what_is_written_is_met_by_loads_and_by_calls(
    name: str, file: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    """The default point stays as it was, for it was not among those asked for."""
    copy = copy_of(request.getfixturevalue(name), tmp_path)
    before = read_bundle(copy).manifest
    found = calibrate(copy, file, BUDGETS, write=True)
    assert found.written and replace(found, written=False) == calibrate(copy, file, BUDGETS)
    after = read_bundle(copy).manifest
    assert [point.budget for point in after.points] == [1.0, 2.0, 2.5, 3.0]
    assert (after.default_budget, after.default_point) == (before.default_budget, before.default_point)
    with Predictor.load(copy) as predictor:
        assert layers_of(predictor) == found.rows[0].routes.mean_layers
        for budget, row in zip(BUDGETS, found.rows[1:], strict=True):
            met = layers_of(predictor, budget=budget)
            assert met == row.routes.mean_layers == pytest.approx(row.budget, abs=0.1)
            with Predictor.load(copy, budget=budget) as loaded:
                assert layers_of(loaded) == met
                assert layers_of(loaded, budget=2) == found.rows[0].routes.mean_layers
    assert validate(copy).passed


def test_a_written_point_says_on_what_it_was_met_and_what_it_came_to(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    labelled = write_csv(tmp_path / "labelled.csv", [(text, "yes") for text in TEXTS])
    row = calibrate(copy, labelled, [3], write=True).rows[1]
    (point,) = (point for point in read_bundle(copy).manifest.points if point.budget == 3)
    with Predictor.load(copy) as predictor:
        full = [prediction.label == "yes" for prediction in predictor(TEXTS, router="full")]
    assert (point.data, point.thresholds) == ("60 texts of labelled.csv", (row.threshold,) * 4)
    assert (point.mean_layers, point.metric, point.full_metric) == (row.routes.mean_layers, row.metric, np.mean(full))
    assert list(point.routes) == [(tuple(route), share) for route, share in row.routes.commonest]


def test_between_two_written_points_texts_run_a_number_of_layers_between_theirs(
    bundle: Path, file: Path, tmp_path: Path
):
    copy = copy_of(bundle, tmp_path)
    calibrate(copy, file, [1, 3], write=True)
    with Predictor.load(copy) as predictor:
        met = [layers_of(predictor, budget=budget) for budget in (2, 2.4, 2.7, 3)]
        assert met == sorted(met) and met[0] < met[-1]
        with pytest.raises(BudgetError, match=r"budget 3.5: .*points for 1, 2, 3; add it with .*--budget 3.5 --write"):
            predictor(TEXTS, budget=3.5)


@pytest.mark.parametrize("name", ["bundle", "whole_bundle"])
def test_the_default_point_itself_may_be_met_anew_and_the_bundle_still_passes_its_checks(
    name: str, file: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    """The answers recorded at the build are those of the thresholds it was built with."""
    copy = copy_of(request.getfixturevalue(name), tmp_path)
    other = write_csv(tmp_path / "one.csv", [(TEXTS[0],)], ("text",))
    for data in (file, other):
        row = calibrate(copy, data, write=True).rows[1]
        manifest = read_bundle(copy).manifest
        assert [point.budget for point in manifest.points] == [manifest.default_budget] == [2.0]
        assert manifest.default_point.thresholds == (row.threshold,) * 4
        with Predictor.load(copy) as predictor:
            assert layers_of(predictor) == mean_layers(copy, row.threshold)
        checked = validate(copy)
        assert checked.golden.passed and checked.passed
    assert row.threshold != 0


def test_an_engine_added_after_the_default_point_was_met_anew_passes(bundle: Path, file: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    calibrate(copy, file, write=True)
    assert build(copy, engine="ort", cut="whole").parity == "passed"
    assert validate(copy, cut="whole").passed


def test_nothing_is_written_unless_it_is_asked_for_or_if_a_budget_cannot_be(bundle: Path, file: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    before = (copy / "manifest.json").read_bytes()
    assert not calibrate(copy, file, [3]).written
    with pytest.raises(BudgetError, match="--budget 5"):
        calibrate(copy, file, [3, 5], write=True)
    assert (copy / "manifest.json").read_bytes() == before


# The command


def test_what_the_command_prints_can_be_run_as_it_is(openvino_bundle: Path, file: Path, tmp_path: Path):
    """With the engine whose margins they are, here the second of the bundle."""
    as_json, run = tmp_path / "found.json", CliRunner().invoke
    asked = ["--data", str(file), "--engine", "openvino", "--budget", "3"]
    result = run(main, ["calibrate", str(openvino_bundle), *asked, "--json", str(as_json)])
    assert result.exit_code == 0, result.output
    row = json.loads(as_json.read_text())["rows"][1]
    *_, python, command, _ = result.stdout.splitlines()
    with eval(python.removeprefix("for 3: "), {"Predictor": Predictor}) as predictor:
        layers = [len(prediction.layers) for prediction in predictor(TEXTS)]
    assert np.mean(layers) == row["routes"]["mean_layers"]
    answers = run(main, [*command.split()[2:], "--input", str(file)]).stdout.splitlines()
    assert [len(json.loads(line)["layers"]) for line in answers] == layers


def test_so_can_what_it_prints_of_points_that_it_wrote(bundle: Path, file: Path, tmp_path: Path):
    copy, run = copy_of(bundle, tmp_path), CliRunner().invoke
    done = run(main, ["calibrate", str(copy), "--data", str(file), "--budget", "3", "--write"])
    assert done.exit_code == 0, done.output
    python, command = done.stdout.splitlines()[-2:]
    assert "budget=3)" in python and command.endswith("--budget 3")
    with eval(python.removeprefix("for 3: "), {"Predictor": Predictor}) as predictor:
        layers = [len(prediction.layers) for prediction in predictor(TEXTS)]
    answers = run(main, [*command.split()[2:], "--input", str(file)]).stdout.splitlines()
    assert [len(json.loads(line)["layers"]) for line in answers] == layers
    assert np.mean(layers) == pytest.approx(3, abs=0.1)


# A loss or a time, instead of a budget

LABELLED = [(text, "yes" if label == "positive" else "no") for text, label in sentences(200, 11)]
MANY = [text for text, _ in LABELLED]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for a loss of one in a hundred."""
    return write_csv(tmp_path_factory.mktemp("many") / "many.csv", LABELLED)


@pytest.mark.parametrize("labelled", [True, False])
def test_what_may_be_lost_gives_the_last_budget_of_a_row_that_lose_no_more(
    labelled: bool, bundle: Path, many: Path, tmp_path: Path
):
    """From all layers down, each against full BERT on the same texts, until one loses too much."""
    data = many if labelled else write_csv(tmp_path / "many.csv", [(text,) for text in MANY], ("text",))
    found = calibrate(bundle, data, max_loss=0.3)
    tried = found.rows[1:]
    assert [row.budget for row in tried] == sorted((row.budget for row in tried), reverse=True)
    assert tried[0].budget == 4 and found.chosen in tried and found.loss_of == ("accuracy" if labelled else "agreement")
    within = [row.loss.most <= 0.3 for row in tried]
    assert all(within[:-1]) and found.chosen == [row for row, fits in zip(tried, within, strict=True) if fits][-1]
    right = [label for _, label in LABELLED]
    with Predictor.load(bundle) as predictor:
        full, ours = (
            [one.label for one in predictor(MANY, **options)]
            for options in ({"router": "full"}, {"gate_threshold": found.chosen.threshold})
        )
    if labelled:
        expected = np.mean(np.array(full) == right) - np.mean(np.array(ours) == right)
    else:
        expected = np.mean(np.array(full) != np.array(ours))
    assert found.chosen.loss.value == pytest.approx(expected)


def test_the_loss_of_an_engine_below_fp32_is_counted_against_full_bert_in_fp32(
    bundle: Path, many: Path, tmp_path: Path
):
    """Not against its own full BERT, which has lost with it."""
    copy = copy_of(bundle, tmp_path)
    build(copy, engine="ort", precision="int8", cut="gates")
    with Predictor.load(copy, engine="ort-int8", allow_failed=True) as predictor, Predictor.load(copy) as plain:
        found = Gauge(predictor, MANY).full_logits()
        exact = plain.run(plain.tokenizer.encode(MANY), router="full")[0]
        own = predictor.run(predictor.tokenizer.encode(MANY), router="full")[0]
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.abs(own - exact).max() > 1e-4


def test_what_was_looked_for_becomes_the_default_where_it_is_written(bundle: Path, many: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    found = calibrate(copy, many, max_loss=0.3, write=True)
    assert (found.written, found.default) == (True, True)
    manifest = read_bundle(copy).manifest
    assert manifest.default_budget == found.chosen.budget
    assert manifest.default_point.thresholds == (found.chosen.threshold,) * 4
    assert manifest.default_point.metric == found.chosen.metric
    with Predictor.load(copy) as predictor:
        layers = [len(one.layers) for one in predictor(MANY)]
    assert np.mean(layers) == pytest.approx(found.chosen.routes.mean_layers)
    assert validate(copy).passed
    assert f"the default is now {found.chosen.budget:g}" in text.calibration(found)


def test_a_time_gives_the_largest_budget_that_keeps_it(bundle: Path, many: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a clock that knows the layers alone: what half of a hundred calls take no longer than."""

    def in_layers(gauge: Gauge, *, gate_threshold: float) -> float:
        return float(gauge.run(gate_threshold=gate_threshold)[1].sum(axis=1).mean())

    monkeypatch.setattr(Gauge, "p50_ms", in_layers)
    found = calibrate(bundle, many, p50=2.6)
    assert found.chosen == found.rows[-1] and found.chosen.p50_ms <= 2.6
    assert all(row.p50_ms > 2.6 for row in found.rows[1:-1]) and found.chosen.budget in (2.5, 2.625)
    with pytest.raises(BudgetError, match=r"with 0.125 layers a call takes .* ms; allow more time"):
        calibrate(bundle, many, p50=1e-9)


def test_half_of_the_calls_take_no_longer_than_is_measured(bundle: Path, many: Path):
    with Predictor.load(bundle) as predictor:
        gauge = Gauge(predictor, MANY)
        few, every = gauge.p50_ms(gate_threshold=np.inf), gauge.p50_ms(gate_threshold=-np.inf)
    assert 0 < few < every


def test_two_things_to_look_for_or_what_cannot_be_is_refused(
    bundle: Path, many: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for options in ({"max_loss": 0.1, "p50": 5.0}, {"budgets": [2], "max_loss": 0.1}, {"budgets": [2], "p50": 1.0}):
        with pytest.raises(DataError, match="each says which budget to look for; leave one of them out"):
            calibrate(bundle, many, **options)
    with pytest.raises(DataError, match=r"--max-loss 0\.01: 60 texts cannot show it"):
        calibrate(bundle, file, max_loss=0.01)
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(DataError, match=r"--p50 .*: expected milliseconds above 0"):
            calibrate(bundle, file, p50=wrong)
    copy = copy_of(bundle, tmp_path)
    before = (copy / "manifest.json").read_bytes()
    monkeypatch.setattr(Judge, "loss", lambda judge, logits: Loss(0.1, 0.2))
    with pytest.raises(BudgetError, match=r"with 4 layers it may lose up to 0.2000, and --max-loss is 0.1; allow more"):
        calibrate(copy, many, max_loss=0.1, write=True)
    assert (copy / "manifest.json").read_bytes() == before


def test_labels_of_which_the_metric_says_nothing_are_left_out_unless_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Pairs of which each query has one document: NDCG of them would be 0, and nothing would be lost."""
    source = make_source(model_folder, tmp_path, labels=("LABEL_0",), problem_type="ranking")
    bundle = write_cut(replace(source, metric="ndcg"), tmp_path, "whole")
    rows = [(f"query {number}", text, number % 2) for number, text in enumerate(TEXTS)]
    file = write_csv(tmp_path / "pairs.csv", rows, ("sentence1", "sentence2", "label"))
    assert [row.metric for row in calibrate(bundle, file).rows] == [None, None]
    assert "ndcg says nothing" in capsys.readouterr().err
    with pytest.raises(DataError, match="no query has documents of different relevance"):
        calibrate(bundle, file, label_column="label")


def test_a_file_whose_name_is_no_text_is_noted_with_escapes(bundle: Path, file: Path, tmp_path: Path):
    copy, odd = copy_of(bundle, tmp_path), tmp_path / os.fsdecode(b"caf\xe9.csv")
    odd.write_bytes(file.read_bytes())
    calibrate(copy, odd, [2.5], write=True)
    assert any(point.data.endswith("of caf\\udce9.csv") for point in read_bundle(copy).manifest.points)
