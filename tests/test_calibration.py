"""`calibrate` against the search that training does in PyTorch, and against what the bundle then runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hadskip_export import calibrate
from hadskip_export.cli import main
from hadskip_export.errors import BudgetError, DataError
from hadskip_export.exporters.from_run import Source
from hadskip_export.runtime import Predictor
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.threshold import fit_threshold
from tests.conftest import sentences, write_csv

ROWS = sentences(60, 7)
BUDGETS = (1.0, 2.5, 0.75)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", [(text,) for text, _ in ROWS], ("text",))


@pytest.mark.parametrize("name", ["bundle", "lookahead_bundle", "fused_bundle", "graph_bundle"])
def test_thresholds_are_those_that_training_finds_for_these_texts(
    name: str, texts: Path, source: Source, request: pytest.FixtureRequest
):
    """Whatever the layout of the gates; a pinch apart, for the engine's margins are not PyTorch's to the last bit."""
    folder: Path = request.getfixturevalue(name)
    found = calibrate(folder, texts, BUDGETS)
    encoded = Tokenizer(source.tokenizer, source.max_length).encode([text for text, _ in ROWS])
    data = Dataset(encoded, np.zeros(len(ROWS), np.int64))
    assert [row.budget for row in found.rows] == [None, 1.0, 2.5, 3.0]
    for row in found.rows[1:]:
        assert row.budget is not None
        assert row.threshold == pytest.approx(fit_threshold(source.model, data, row.budget), abs=1e-4)
        with Predictor.load(folder, gate_threshold=row.threshold) as predictor:
            layers = [len(prediction.layers) for prediction in predictor([text for text, _ in ROWS])]
        assert row.routes.mean_layers == pytest.approx(np.mean(layers))
        assert abs(np.mean(layers) - row.budget) <= 0.1
    built = found.rows[0]
    assert (built.threshold, built.metric, found.texts) == (source.threshold, None, len(ROWS))


def test_labels_give_the_metric_and_nothing_else(bundle: Path, texts: Path, tmp_path: Path):
    labelled = write_csv(tmp_path / "labelled.csv", [(text, "yes") for text, _ in ROWS])
    plain, found = calibrate(bundle, texts), calibrate(bundle, labelled)
    assert [row.threshold for row in found.rows] == [row.threshold for row in plain.rows]
    with Predictor.load(bundle, gate_threshold=found.rows[1].threshold) as predictor:
        said_yes = [prediction.label == "yes" for prediction in predictor([text for text, _ in ROWS])]
    assert found.rows[1].metric == np.mean(said_yes) and 0 < np.mean(said_yes) < 1


def test_the_bundles_own_budget_is_the_default(bundle: Path, texts: Path):
    assert [row.budget for row in calibrate(bundle, texts).rows] == [None, 2.0]


def test_what_cannot_be_is_refused(bundle: Path, static_bundle: Path, texts: Path, tmp_path: Path):
    with pytest.raises(BudgetError, match="static route and no threshold"):
        calibrate(static_bundle, texts)
    with pytest.raises(BudgetError, match="--budget 5: the model has 4 layers"):
        calibrate(bundle, texts, [5])
    with pytest.raises(DataError, match="label 'maybe' is not known"):
        calibrate(bundle, write_csv(tmp_path / "labels.csv", [("good", "maybe")]))


def test_the_command_prints_a_threshold_that_predict_takes(bundle: Path, texts: Path, tmp_path: Path):
    file = tmp_path / "found.json"
    arguments = ["calibrate", str(bundle), "--data", str(texts), "--budget", "3", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(file.read_text())["rows"][1]
    threshold = result.stdout.partition("gate_threshold=")[2].partition(")")[0]
    assert float(threshold) == pytest.approx(row["threshold"], rel=1e-5)
    answers = (
        CliRunner()
        .invoke(main, ["predict", str(bundle), "--input", str(texts), "--gate-threshold", threshold])
        .stdout.splitlines()
    )
    assert np.mean([len(json.loads(line)["layers"]) for line in answers]) == row["routes"]["mean_layers"]
