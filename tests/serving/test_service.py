"""A service as a process: how it begins, ends, and takes another bundle."""

import concurrent.futures
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hadskip_export import calibrate
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.serving.limits import Limits
from hadskip_export.serving.service import Service
from hadskip_export.support.errors import BudgetError
from tests.conftest import make_source, sentences, write_csv, write_cut
from tests.exporters.changing import copy_of
from tests.serving.conftest import ask, serving

PROGRAM = Path(sys.executable).parent / "hadskip-export"
TEXTS = [text for text, _ in sentences(30, 3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(bundle: Path, *options: str, port: int | None = None) -> tuple[subprocess.Popen[str], int]:
    """The command, when it listens."""
    port = port or free_port()
    command = [PROGRAM, "serve", bundle, "--port", str(port), "--threads", "1", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whoever runs these tests may ignore it
    )  # fmt: skip
    for _ in range(600):
        try:
            ask(port, "/health")
            return process, port
        except OSError:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    raise AssertionError("it does not listen")


@pytest.mark.parametrize("in_flight", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_told_to_end_it_answers_what_it_has_accepted(in_flight: int, points_bundle: Path):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of many connections, here and in the service
    process, port = start(points_bundle, "--queue", "100000")
    inputs = [[text] for text in TEXTS]
    accepted = []
    for _ in range(in_flight):  # connected and sent before it is told to
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", json.dumps({"inputs": inputs}), {"Content-Type": "application/json"})
        accepted.append(connection)
    first = accepted[0].getresponse()
    assert first.status == 200
    process.send_signal(signal.SIGTERM)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda one: one.getresponse(), accepted[1:]))
    assert {answer.status for answer in answers} == {200}
    assert all(len(json.loads(answer.read())) == len(inputs) for answer in answers)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said and "Error" not in said
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/predict", {"inputs": "a"})


def test_a_bundle_in_its_place_is_served_and_no_request_is_lost(points_bundle, model_folder, tmp_path: Path):
    """Requests come all the time."""
    place = tmp_path / "bundle"
    shutil.copytree(points_bundle, place)
    (tmp_path / "made").mkdir()
    other = write_cut(make_source(model_folder, tmp_path / "made", seed=7), tmp_path / "made", "whole")
    asked = TEXTS[0]
    with Predictor.load(points_bundle) as one, Predictor.load(other) as two:
        before, after = one(asked).probabilities["yes"], two(asked).probabilities["yes"]
    assert abs(before - after) > 1e-3
    with serving(place) as served:

        def probability() -> float:
            answer = served.ask("/predict", {"inputs": asked})
            assert answer.status == 200
            return {score["label"]: score["score"] for score in answer.json}["yes"]

        seen = [probability()]
        os.rename(place, tmp_path / "old")
        os.rename(other, place)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            deadline = time.monotonic() + 30
            while seen[-1] != pytest.approx(after, abs=1e-5) and time.monotonic() < deadline:
                seen += pool.map(lambda _: probability(), range(20))
        assert served.metric("hadskip_reloads_total") == 1
    assert seen[0] == pytest.approx(before, abs=1e-5) and seen[-1] == pytest.approx(after, abs=1e-5)
    assert all(min(abs(found - before), abs(found - after)) < 1e-5 for found in seen)


def test_a_damaged_bundle_in_its_place_is_not(points_bundle: Path, tmp_path: Path):
    place = tmp_path / "bundle"
    shutil.copytree(points_bundle, place)
    with serving(place) as served:
        (place / "manifest.json").write_text("{}")
        deadline = time.monotonic() + 30
        while not served.metric("hadskip_reloads_total") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 'hadskip_reloads_total{result="failed"} 1.0' in served.ask("/metrics").body.decode()
        assert served.ask("/predict", {"inputs": "a"}).status == 200


def test_one_that_comes_piece_by_piece_is_read_when_it_is_whole(points_bundle: Path, tmp_path: Path):
    """The manifest first, which does not change any more when the rest has come."""
    place = tmp_path / "bundle"
    shutil.copytree(points_bundle, place)
    with serving(place) as served:
        shutil.move(place / "model", tmp_path / "model")
        manifest = place / "manifest.json"
        os.utime(manifest, ns=(1, manifest.stat().st_mtime_ns + 1))
        deadline = time.monotonic() + 30
        while not served.metric("hadskip_reloads_total") and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.move(tmp_path / "model", place / "model")
        while "done" not in served.ask("/metrics").body.decode() and time.monotonic() < deadline:
            time.sleep(0.1)
        text = served.ask("/metrics").body.decode()
        assert 'hadskip_reloads_total{result="failed"}' in text and 'hadskip_reloads_total{result="done"} 1.0' in text
        assert served.ask("/predict", {"inputs": "a"}).status == 200


def test_a_bundle_in_its_place_that_lacks_the_floor_is_not_either(points_bundle, whole_bundle, tmp_path: Path):
    place = tmp_path / "bundle"
    shutil.copytree(points_bundle, place)
    with serving(place, floor=1.0) as served:
        os.rename(place, tmp_path / "old")
        shutil.copytree(whole_bundle, tmp_path / "new")
        os.rename(tmp_path / "new", place)
        deadline = time.monotonic() + 30
        while not served.metric("hadskip_reloads_total") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 'hadskip_reloads_total{result="failed"} 1.0' in served.ask("/metrics").body.decode()
        assert served.ask("/predict", {"inputs": "a", "budget": 1.0}).status == 200


def test_under_load_the_budget_falls_to_the_floor_and_comes_back_into_the_metrics(points_bundle: Path):
    """Every request is answered; layers are what is saved."""
    with serving(points_bundle, Limits(batch_tokens=1, queue=100_000), floor=1.0) as served:
        assert served.metric("hadskip_budget") == 2.0
        inputs = [[text] for text in TEXTS]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            deadline = time.monotonic() + 30
            while served.service.budget != 1.0 and time.monotonic() < deadline:
                answers = list(pool.map(lambda _: served.ask("/predict", {"inputs": inputs}).status, range(128)))
                assert set(answers) == {200}
        assert served.metric("hadskip_budget") == 1.0
        few = served.ask("/predict", {"inputs": inputs}).headers["x-layers-run"]
        full = served.ask("/predict", {"inputs": inputs, "budget": 2.0}).headers["x-layers-run"]
        assert sum(map(int, few.split(","))) < sum(map(int, full.split(",")))


def test_inputs_that_are_others_than_then_are_noticed(points_bundle: Path, tmp_path: Path, caplog):
    """At the service's own operating point alone, for at others they run other layers anyway."""
    copy = copy_of(points_bundle, tmp_path)
    texts = [text for text, _ in sentences(300, 3)]
    calibrate(copy, write_csv(tmp_path / "texts.csv", [(text,) for text in texts], ("text",)), [2.0], write=True)
    with serving(copy) as served:
        served.ask("/predict", {"inputs": [[text] for text in texts[:100]], "budget": 4})
        assert served.metric("hadskip_drift") == 0  # nothing was seen yet
        for first in range(0, 300, 100):
            served.ask("/predict", {"inputs": [[text] for text in texts[first : first + 100]]})
        assert served.metric("hadskip_drift") < 0.01
        for _ in range(10):
            assert served.ask("/predict", {"inputs": [[texts[0]]] * 100}).status == 200
        assert served.metric("hadskip_drift") > 0.25
    said = [one.getMessage() for one in caplog.records if one.name == "hadskip_export.serving.service"]
    assert len(said) == 1 and "inputs run other numbers of layers" in said[0]


@pytest.mark.parametrize("floor", [2.0, 3.0, 0.1])
def test_a_floor_has_to_be_below_the_budget_and_one_of_the_bundle(points_bundle: Path, floor):
    with pytest.raises(BudgetError, match="budget"):
        Service(lambda: Predictor.load(points_bundle, threads=1), points_bundle, Limits(), floor)


def test_where_all_take_one_route_there_is_no_floor(static_bundle: Path):
    with pytest.raises(BudgetError, match="no gates"):
        Service(lambda: Predictor.load(static_bundle, threads=1), static_bundle, Limits(), 1.0)
    with serving(static_bundle) as served:
        assert served.ask("/predict", {"inputs": "a"}).headers["x-layers-run"] == "2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--inputs", "0"], "--inputs 0: expected a number above 0"),
        (["--timeout", "-1"], "--timeout -1: expected a number above 0"),
        (["--timeout", "inf"], "--timeout inf: expected a number above 0"),
        (["--token", ""], "--token (or HADSKIP_TOKEN): empty"),
        (["--token", "é"], "--token (or HADSKIP_TOKEN): empty, or more than printable ASCII"),
        (["--budget", "9"], "budget 9"),
        (["--router", "full", "--budget", "2"], "--budget 2: --router full runs every layer"),
        (["--router", "full", "--least-budget", "1"], "--least-budget 1: --router full runs every layer"),
        (["--least-budget", "3"], "least budget 3"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(points_bundle: Path, options, said):
    done = subprocess.run([PROGRAM, "serve", points_bundle, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_said_in_a_line(points_bundle: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [PROGRAM, "serve", points_bundle, "--port", str(port)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2 and f"--port {port}: cannot listen there" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_token_may_come_from_the_environment(points_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HADSKIP_TOKEN", "")
    done = subprocess.run([PROGRAM, "serve", points_bundle], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "HADSKIP_TOKEN): empty" in done.stderr
    monkeypatch.setenv("HADSKIP_TOKEN", "t")
    process, port = start(points_bundle)
    assert ask(port, "/predict", {"inputs": "a"}).status == 401
    assert ask(port, "/predict", {"inputs": "a"}, Authorization="Bearer t").status == 200
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said and "Error" not in said
