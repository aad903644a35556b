"""Peers beside a bundle: their figures are their own, and a slower one is seen to be."""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hadskip_export import bench
from hadskip_export.benchmark import race as racing
from hadskip_export.benchmark import systems
from hadskip_export.benchmark.race import PeerFigures, fastest_as_good, loaded_bundle, race
from hadskip_export.commands.bench import Benchmark
from hadskip_export.modeling.checkpoint import save_classifier
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.report import text
from hadskip_export.support.errors import BundleError, DataError
from tests.conftest import sentences, write_csv
from tests.modeling.random_models import randomise

ROWS = [(sentence, "yes" if label == "positive" else "no") for sentence, label in sentences(40, 51)]
TEXTS = [sentence for sentence, _ in ROWS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("labelled") / "data.csv", ROWS)


def classifier(source, model_folder: Path, folder: Path, **changes) -> Path:
    """Another fine-tuned model of the bundle's labels, a layer long, as `transformers` saves it."""
    model = Classifier(replace(source.config, num_layers=1, **changes)).init_weights()
    randomise(model, 3)
    save_classifier(model.eval(), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (model_folder / name).is_file():
            shutil.copy(model_folder / name, folder)
    return folder


def figures(name: str, metric: float, p50: float) -> PeerFigures:
    return PeerFigures(name, "ort-fp32-whole", metric, p50, p50, p50, 100.0, 1.0, 1.0)


def test_the_fastest_that_is_as_good_is_held_against_ours():
    ours, small, slow, better = (
        figures("o", 0.9, 2),
        figures("s", 0.8, 1),
        figures("l", 0.9, 5),
        figures("b", 0.95, 4),
    )
    assert fastest_as_good(ours, [small, slow, better]) is better
    assert fastest_as_good(ours, [small]) is None
    assert Benchmark({}, (), (ours, small, slow)).rival is slow and Benchmark({}, ()).rival is None


@pytest.fixture(scope="module")
def found(bundle, source, model_folder, data, tmp_path_factory) -> Benchmark:
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(racing, "TURNS", 2)
        patch.setattr(systems, "MOST_CALLS", 10)
        peers = [
            classifier(source, model_folder, folder / "small"),
            classifier(source, model_folder, folder / "turned", labels=("yes", "no")),
        ]
        return bench(bundle, data=data, against=peers)


def test_every_peer_has_its_own_figures(found, source, model_folder):
    assert [peer.name for peer in found.peers] == ["hadskip", "full BERT", "small", "turned"]
    (row,) = found.rows
    assert (found.peers[0].metric, found.peers[1].metric) == pytest.approx((row.metric, row.full_metric))
    for peer in found.peers:
        assert 0 < peer.p50 <= peer.p90 <= peer.p99 and peer.throughput > 0 and peer.memory_mb > 20
    sizes = {peer.name: peer.disk_mb for peer in found.peers}
    assert sizes["small"] < sizes["hadskip"] == sizes["full BERT"]
    shown = "\n".join(text.benchmark(found))
    assert "turned" in shown and "texts/s" in shown


def test_a_peer_whose_labels_come_in_another_order_is_scored_by_their_names(found):
    """The same weights under the other names: what the one has right the other has wrong."""
    small, turned = found.peers[2:]
    assert small.metric == pytest.approx(1 - turned.metric)


SLOWED = """
import time
from hadskip_export.runtime.predictor import Predictor

plain = Predictor.__call__


def slowed(self, *arguments, **options):
    started = time.perf_counter()
    time.sleep(0.02)
    answer = plain(self, *arguments, **options)
    if self.bundle.path.name == "slowed":  # by a share of what it took: a busy machine adds to all calls
        time.sleep(0.2 * (time.perf_counter() - started))
    return answer


Predictor.__call__ = slowed
"""


@pytest.mark.slow
def test_a_planted_slowdown_of_a_fifth_is_seen(bundle, tmp_path, monkeypatch):
    """Of two copies of a bundle, whose calls take a while, the one takes a fifth longer for each, for real."""
    (tmp_path / "sitecustomize.py").write_text(SLOWED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ExitStack() as stack:
        copies = {name: Path(shutil.copytree(bundle, tmp_path / name)) for name in ("plain", "slowed")}
        options = {"engine": "ort-fp32-gates"}
        entered = [
            stack.enter_context(loaded_bundle(name, copy, options, (0, 1), TEXTS)) for name, copy in copies.items()
        ]
        plain, slowed = race(entered, TEXTS, lambda logits: float(np.isfinite(logits).mean()))
    assert slowed.p50 > 1.1 * plain.p50 and plain.throughput > 1.1 * slowed.throughput
    assert 20 < plain.memory_mb < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("good", "bad")}, "answers good, bad"),
        ({"problem_type": "multi_label_classification"}, "multi_label"),
    ],
    ids=str,
)
def test_one_that_answers_something_else_is_refused(bundle, source, model_folder, data, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        bench(bundle, data=data, against=[classifier(source, model_folder, tmp_path / "other", **changes)])


def test_what_is_no_classifier_or_has_nothing_to_be_scored_on_is_refused(bundle, model_folder, data, tmp_path):
    with pytest.raises(DataError, match="--against: give labelled --data"):
        bench(bundle, against=[model_folder])
    with pytest.raises(DataError, match="no such folder"):
        bench(bundle, data=data, against=[tmp_path / "nowhere"])
    with pytest.raises(BundleError, match="no classifier of its own"):
        bench(bundle, data=data, against=[model_folder])
    encoder = shutil.copytree(model_folder, tmp_path / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"architectures": None}))
    with pytest.raises(BundleError, match="no named architecture has no classifier of its own"):
        bench(bundle, data=data, against=[f"torch-compile:{encoder}"])
    with pytest.raises(BundleError, match="the weights lack"):
        bench(bundle, data=data, against=[encoder])


def test_memory_is_the_process_s_own_not_that_of_whoever_started_it():
    """Which has an array of 300 MB, all of it touched."""
    code = "import numpy as np; from hadskip_export.benchmark.outside.replies import peak_memory; print(peak_memory())"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    large = f"import numpy as np; held = np.ones(300_000_000, np.uint8); {child}"
    small, started = (
        int(subprocess.run([sys.executable, "-c", one], capture_output=True, text=True, check=True).stdout)
        for one in (child, large)
    )
    assert abs(started - small) < 50e6
    own = f"import numpy as np; held = np.ones(300_000_000, np.uint8); {code.partition('; ')[2]}"
    assert int(subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout) > 300e6
