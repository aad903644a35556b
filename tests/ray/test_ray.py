"""`score --ray` and Ray Serve, with Ray itself, in an environment of its own (`make ray`)."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from hadskip_export import score
from hadskip_export.runtime import Predictor
from tests.conftest import sentences, write_csv

pytestmark = pytest.mark.slow

ENVIRONMENT = Path(os.environ.get("RAY", "build/ray")).absolute()
TEXTS = [text for text, _ in sentences(60, 4)]
SECONDS = 120


def environment(**more: str) -> dict[str, str]:
    """Without what would tell Ray where it is, or keep it silent of itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    return kept | {"PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{kept['PATH']}"} | more


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [str(ENVIRONMENT / "bin" / "hadskip-export"), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(process.communicate()) from None


def parts(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(out.glob("*.jsonl"))}


def workers() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if "ray::MapWorker" in " ".join(one.info["cmdline"] or ())]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """One large, others small."""
    sizes = {"large.csv": 60, "small.csv": 3, "other.csv": 2}
    return [
        write_csv(tmp_path / name, [(t, "x") for t in TEXTS * size], ("text", "id")) for name, size in sizes.items()
    ]


@pytest.fixture
def wanted(whole_bundle: Path, inputs: list[Path], tmp_path: Path) -> dict[str, str]:
    score(whole_bundle, inputs, tmp_path / "wanted", rows=20, threads=1)
    return parts(tmp_path / "wanted")


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "a worker is killed"])
def test_nothing_is_lost_or_doubled(whole_bundle: Path, inputs: list[Path], wanted, tmp_path: Path, kill: bool):
    out = tmp_path / "out"
    workers_asked = 2 if kill else 64  # more than there is room for: those that there are do it
    process = start("score", whole_bundle, *inputs, "--out", out, "--rows", 20, "--ray", "--workers", workers_asked)
    killed = set()
    for _ in range(SECONDS * 50):
        if not kill or process.poll() is not None or len(killed) == 2:
            break
        if len(parts(out)) > 5 * (len(killed) + 1):  # in the middle of it, twice
            victim = next((one for one in workers() if one.pid not in killed), None)
            if victim is not None:
                victim.kill()
                killed.add(victim.pid)
        time.sleep(0.02)
    stdout, stderr = ended(process)
    assert process.returncode == 0, stderr
    assert len(killed) == 2 * kill
    assert parts(out) == wanted
    assert stdout.splitlines()[0].startswith(f"{65 * len(TEXTS):,} rows in {len(wanted)} parts")
    assert {file.name for file in out.iterdir() if not file.name.startswith(".")} == {"score.json", *wanted}


def test_killed_as_a_whole_it_goes_on_where_it_was(whole_bundle: Path, inputs: list[Path], wanted, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ("score", whole_bundle, *inputs, "--out", out, "--rows", 20, "--ray", "--workers", 1)
    process = start(*arguments)
    while process.poll() is None and len(parts(out)) < 10:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = len(parts(out))
    assert there < len(wanted)
    stdout, stderr = ended(second := start(*arguments))
    assert second.returncode == 0, stderr
    computed = int(stdout.splitlines()[0].split(" parts, ")[1].split()[0])
    assert 0 < computed <= len(wanted) - there  # workers live a little longer than what started them
    assert parts(out) == wanted


def test_a_bad_row_is_named_in_a_line(whole_bundle: Path, inputs: list[Path], tmp_path: Path):
    with inputs[1].open("a") as file:
        file.write("short\n")
    _, stderr = ended(process := start("score", whole_bundle, *inputs, "--out", tmp_path / "out", "--ray"))
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith(f"Error: {inputs[1]}, line 182: expected 2 columns, found 1")
    assert "Traceback" not in stderr


def test_the_commands_of_the_page_do_what_it_says(whole_bundle: Path, inputs: list[Path], wanted, tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "bulk.md").read_text()
    commands = [line.strip() for line in page.splitlines() if line.startswith("    hadskip-export")]
    (tmp_path / "bundle").symlink_to(whole_bundle)
    (tmp_path / "more").mkdir()
    for file, place in zip(inputs, ("reviews.csv", "more/a.csv", "more/b.csv"), strict=True):
        file.rename(tmp_path / place)
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert len(commands) == 2 and parts(tmp_path / "answers") == parts(tmp_path / "answers-ray")
    rows = [json.loads(row) for text in parts(tmp_path / "answers").values() for row in text.splitlines()]
    assert len(rows) == 65 * len(TEXTS)
    assert [row for row in rows if "id" not in row] == []


@pytest.fixture
def served(whole_bundle: Path) -> Iterator[str]:
    """The address of the example."""
    example = Path(__file__).parents[2] / "examples" / "ray_serve"
    process = subprocess.Popen(
        [ENVIRONMENT / "bin" / "serve", "run", "app:application"], cwd=example, start_new_session=True,
        env=environment(BUNDLE=str(whole_bundle), RAY_USAGE_STATS_ENABLED="0"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
        # A shell that runs the tests in its background has them, and what they start, ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        for _ in range(SECONDS * 5):
            assert process.poll() is None, process.communicate()
            try:
                ask("http://127.0.0.1:8000/", {"text": "a"})
                break
            except OSError:
                time.sleep(0.2)
        yield "http://127.0.0.1:8000/"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ask(address: str, question: Any) -> Any:
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_example_of_ray_serve_answers_as_the_predictor_does(served: str, whole_bundle: Path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: ask(served, {"text": text}), TEXTS))
    with Predictor.load(whole_bundle, threads=1) as predictor:
        for answer, text in zip(found, TEXTS, strict=True):
            wanted = predictor(text)
            assert answer["label"] == wanted.label and answer["layers"] == list(wanted.layers)
            assert answer["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-6)
    with pytest.raises(urllib.error.HTTPError, match="422"):
        ask(served, {"texts": []})
