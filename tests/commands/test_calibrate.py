"""`calibrate` against the search that training does in PyTorch, and against what the bundle then runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hadskip_export import calibrate
from hadskip_export.cli import main
from hadskip_export.commands.calibrate import _Asked
from hadskip_export.exporters.write import Source
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.chain import Chain
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import BudgetError, DataError, EngineError
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.threshold import fit_threshold
from tests.conftest import sentences, write_csv

TEXTS = [text for text, _ in sentences(60, 7)]
BUDGETS = (1.0, 2.5, 0.75)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", [(text,) for text in TEXTS], ("text",))


@pytest.fixture(scope="module")
def fitted(source: Source) -> list[float]:
    """What training finds for these texts."""
    encoded = Tokenizer(source.tokenizer, source.max_length).encode(TEXTS)
    data = Dataset(encoded, np.zeros(len(TEXTS), np.int64))
    return [fit_threshold(source.model, data, budget) for budget in (1.0, 2.5, 3.0)]


def mean_layers(folder: Path, threshold: float) -> float:
    with Predictor.load(folder, gate_threshold=threshold) as predictor:
        return float(np.mean([len(prediction.layers) for prediction in predictor(TEXTS)]))


@pytest.mark.parametrize("name", ["bundle", "lookahead_bundle", "fused_bundle", "guessing_bundle"])
def test_thresholds_are_those_that_training_finds_for_these_texts(
    name: str, file: Path, source: Source, fitted: list[float], request: pytest.FixtureRequest
):
    """Whatever the layout of the gates; a pinch apart, for the engine's margins are not PyTorch's to the last bit."""
    folder: Path = request.getfixturevalue(name)
    found = calibrate(folder, file, BUDGETS)
    assert [row.budget for row in found.rows] == [None, 1.0, 2.5, 3.0]
    assert [row.threshold for row in found.rows[1:]] == pytest.approx(fitted, abs=1e-4)
    for row in found.rows[1:]:
        assert row.routes.mean_layers == mean_layers(folder, row.threshold) == pytest.approx(row.budget, abs=0.1)
    built = found.rows[0]
    assert (built.threshold, built.metric, found.texts) == (source.threshold, None, len(TEXTS))


def test_one_threshold_does_not_depend_on_the_others_asked_for(bundle: Path, file: Path):
    together = [row.threshold for row in calibrate(bundle, file, BUDGETS).rows[1:]]
    assert [calibrate(bundle, file, [budget]).rows[1].threshold for budget in BUDGETS] == together


def test_the_bundles_own_budget_is_the_default(bundle: Path, file: Path):
    assert [row.budget for row in calibrate(bundle, file).rows] == [None, 2.0]


def test_pairs_and_a_single_input_will_do(bundle: Path, tmp_path: Path):
    """Of which half a layer is not to be had: the side of more layers is taken, and that it is off is said."""
    found = calibrate(bundle, write_csv(tmp_path / "pairs.csv", [("good", "bad film")], ("text", "text2")), [4, 3.5])
    assert found.texts == 1 and [row.routes.mean_layers for row in found.rows[1:]] == [4, 4]
    assert ["no nearer" in line for line in found.lines()[3:5]] == [False, True]
    with Predictor.load(bundle) as predictor:
        assert len(predictor(("good", "bad film")).layers) == found.rows[0].routes.mean_layers


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
    with pytest.raises(EngineError, match="ort-fp32: the gates' margins are no numbers here; try another engine"):
        calibrate(bundle, file)


def test_what_cannot_be_calibrated_is_refused(bundle: Path, static_bundle: Path, file: Path, tmp_path: Path):
    with pytest.raises(BudgetError, match="static route and no threshold"):
        calibrate(static_bundle, file)
    with pytest.raises(BudgetError, match="--budget 5: the model has 4 layers"):
        calibrate(bundle, file, [5])
    with pytest.raises(DataError, match="cannot tell which of 'x' to use; name it with --text-column"):
        calibrate(bundle, write_csv(tmp_path / "x.csv", [("good",)], ("x",)))


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
