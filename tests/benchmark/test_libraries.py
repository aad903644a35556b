"""Other libraries beside a bundle, each for real in an environment of its own: `make peers`, some gigabytes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hadskip_export import bench
from hadskip_export.benchmark import libraries, race, systems
from hadskip_export.benchmark.libraries import LIBRARIES, OUTSIDE, loaded_library
from hadskip_export.modeling.checkpoint import save_classifier
from hadskip_export.report import text
from hadskip_export.runtime.bundle import read_manifest
from hadskip_export.support.errors import DataError, EngineError
from tests.conftest import sentences, write_csv

ROWS = [(sentence, "yes" if label == "positive" else "no") for sentence, label in sentences(24, 51)]
TEXTS = [sentence for sentence, _ in ROWS]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where environments go, which have nothing in them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "hadskip-export" / "environments"


@pytest.fixture(scope="module")
def classifier(source, model_folder, tmp_path_factory) -> Path:
    """The fine-tuned model of `bundle`, as `transformers` saves it."""
    folder = tmp_path_factory.mktemp("classifiers") / "mine"
    save_classifier(source.full, folder)
    for file in model_folder.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("labelled") / "data.csv", ROWS)


def logits_of(folder: Path) -> np.ndarray:
    """As `transformers` has them, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return np.concatenate([model(**tokenizer(one, return_tensors="pt")).logits.numpy() for one in TEXTS])


def test_a_folder_that_is_none_is_refused_before_anything_is_installed(bundle, data, tmp_path, elsewhere):
    for name in LIBRARIES:
        with pytest.raises(DataError, match=rf"^--against {name}:.*nowhere: no such folder"):
            bench(bundle, data=data, against=[f"{name}:{tmp_path / 'nowhere'}"])
    assert not elsewhere.exists()


def test_two_of_one_name_are_refused(bundle, data, classifier, tmp_path):
    with pytest.raises(DataError, match="several are called mine"):
        bench(bundle, data=data, against=[f"optimum:{classifier}", f"optimum:{tmp_path / 'mine'}"])


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_leaves_nothing(bundle, classifier, tmp_path, elsewhere, monkeypatch):
    (tmp_path / "none.txt").write_text("no-package-is-called-so==1.0\n")
    for name in ("pip", "venv"):  # nobody runs what lies in the current folder
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LIBRARIES, "optimum", str(tmp_path / "none.txt"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    like = read_manifest(bundle).model
    with (
        pytest.raises(EngineError, match=r"none\.txt: pip says .*no-package-is-called-so"),
        loaded_library("optimum", classifier, like, TEXTS, tmp_path / "place"),
    ):
        pass
    assert not list(elsewhere.iterdir())


def test_environments_are_pinned_to_the_last_package():
    for name in set(LIBRARIES.values()):
        lines = [line for line in (OUTSIDE / name).read_text().splitlines() if not line.startswith("#")]
        assert len(lines) > 20 and all(line.count("==") == 1 and "+" not in line for line in lines)


@pytest.mark.peers
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_answers_as_transformers_does(name, bundle, classifier, tmp_path):
    """Within what its precision leaves of random weights' logits."""
    expected = logits_of(classifier)
    with loaded_library(name, classifier, read_manifest(bundle).model, TEXTS, tmp_path / "place") as entered:
        logits = np.array(entered.process.ask("answers", batch_size=7)["logits"])
        seconds = entered.process.ask("calls", calls=[[0], [1, 2]])["seconds"]
        assert entered.process.ask("memory")["mb"] > 100
    exact = name in ("optimum", "torch-compile")
    np.testing.assert_allclose(logits, expected, atol=1e-4 if exact else 0.05 * np.abs(expected).max())
    assert len(seconds) == 2 and min(seconds) > 0
    assert entered.name == f"{name}:mine" and entered.disk_mb > 0.01


@pytest.mark.peers
def test_a_folder_of_a_newer_transformers_is_read_by_an_older_one(bundle, classifier, tmp_path):
    """Which calls its general tokenizer by another name."""
    newer = Path(shutil.copytree(classifier, tmp_path / "newer"))
    settings = json.loads((newer / "tokenizer_config.json").read_text()) | {"tokenizer_class": "TokenizersBackend"}
    (newer / "tokenizer_config.json").write_text(json.dumps(settings))
    with loaded_library("optimum", newer, read_manifest(bundle).model, TEXTS, tmp_path / "place") as entered:
        logits = np.array(entered.process.ask("answers", batch_size=7)["logits"])
    np.testing.assert_allclose(logits, logits_of(newer), atol=1e-4)


@pytest.mark.peers
def test_libraries_stand_in_one_table(bundle, classifier, data, monkeypatch):
    monkeypatch.setattr(race, "TURNS", 2)
    monkeypatch.setattr(systems, "MOST_CALLS", 10)
    found = bench(bundle, data=data, against=[f"optimum:{classifier}", f"optimum-int8:{classifier}"])
    assert [peer.name for peer in found.peers] == ["hadskip", "full BERT", "optimum:mine", "optimum-int8:mine"]
    full, optimum = found.peers[1:3]
    assert optimum.metric == pytest.approx(full.metric)
    assert all(0 < peer.p50 <= peer.p99 and peer.throughput > 0 for peer in found.peers)
    assert "onnxruntime" in "\n".join(text.benchmark(found))


@pytest.mark.peers
def test_one_of_other_labels_is_refused(bundle, source, classifier, data, tmp_path):
    other = Path(shutil.copytree(classifier, tmp_path / "other"))
    config = other / "config.json"
    config.write_text(config.read_text().replace('"yes"', '"maybe"'))
    with pytest.raises(DataError, match=r"answers .*maybe"):
        bench(bundle, data=data, against=[f"optimum:{other}"])


@pytest.mark.peers
def test_an_environment_is_made_once(monkeypatch):
    monkeypatch.setattr(libraries, "_run", lambda *_: pytest.fail("made again"))
    assert libraries._environment(OUTSIDE / LIBRARIES["optimum"]).is_file()
    assert sys.prefix not in str(libraries._environment(OUTSIDE / LIBRARIES["optimum"]))
