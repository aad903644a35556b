"""Bundles in the real Triton Inference Server, as the wheel nvidia-pytriton brings it, in an environment of its own
(`make triton`), asked through NVIDIA's client. The Predictor in this process is the oracle."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hadskip_export import triton
from hadskip_export.data.problems import MULTI, RANKING, SINGLE
from hadskip_export.routing.points import Point
from hadskip_export.runtime.predictor import Predictor
from tests.conftest import make_source, sentences, write_cut

pytestmark = pytest.mark.slow

ENVIRONMENT = Path(os.environ.get("TRITON", "build/triton")).absolute()
TEXTS = [text for text, _ in sentences(40, 7)] + ["", "naïve 映画 \N{CLAPPER BOARD}", "good " * 200]
PAIRS = [(first, second) for first, second in zip(TEXTS[:20], TEXTS[20:40], strict=True)]
MODELS = {
    "reviews": (SINGLE, ("no", "yes")),
    "tags": (MULTI, ("sad", "long", "new")),
    "relevance": (RANKING, ("LABEL_0",)),
}
CLOSE = 1e-6


@dataclass(frozen=True)
class Server:
    """Triton, which listens."""

    addresses: tuple[str, str]
    bundles: dict[str, Path]
    log: Path

    def ask(self, *questions: dict[str, Any]) -> list[dict[str, Any]]:
        program = Path(__file__).with_name("asking.py")
        done = subprocess.run(
            [ENVIRONMENT / "bin" / "python", program, *self.addresses], input=json.dumps(questions), text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def question(model: str, texts: list, *, pairs: list | None = None, by: str = "http", **more: Any) -> dict[str, Any]:
    """As `asking.py` takes it. `more`: parameters of the request; `classes`: output -> how many of its classes."""
    classes = more.pop("classes", {})
    inputs = {"text": texts} | ({} if pairs is None else {"pair": pairs})
    return {"model": model, "inputs": inputs, "by": by, "parameters": more, "classes": classes}


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def backends(folder: Path) -> Path:
    """The Python backend with the program that is of this Python."""
    packages = ENVIRONMENT / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends", folder)
    stub = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(stub / "triton_python_backend_stub", folder / "python")
    return packages


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("triton")
    bundles = {}
    for name, (kind, labels) in MODELS.items():
        (folder / name).mkdir()
        source = make_source(model_folder, folder / name, labels=labels, problem_type=kind)
        points = (Point(1.0, (1.0,) * 4, "evaluation", 1.0), Point(2.0, (0.0,) * 4, "evaluation", 2.0))
        bundles[name] = write_cut(replace(source, points=points), folder / name, "whole")
        triton(bundles[name], folder / "models", name=name, threads=1)
    triton(bundles["reviews"], folder / "models", name="full", router="full")
    triton(bundles["reviews"], folder / "models", name="one-layer", budget=1)
    packages = backends(folder / "backends")
    http, grpc, metrics = free_ports(3)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(packages),  # of the server's Python, which it finds by PATH and knows no environment
    }
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
                f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}",
                "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}",
                f"--metrics-port={metrics}",
            ],
            env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(process, http, log)
        yield Server((f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"), bundles, log)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


def wait_for(process: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("by", ["http", "grpc"])
def test_classes_are_the_predictors_own_whatever_comes_together(server: Server, by: str):
    sizes = [1, 3, 7, 32]
    asked = [TEXTS[start : start + size] for size in sizes for start in range(0, len(TEXTS), size)]
    answers = server.ask(*(question("reviews", texts, by=by) for texts in asked))
    with Predictor.load(server.bundles["reviews"], threads=1) as predictor:
        expected = {text: predictor(text) for text in TEXTS}
    assert len({prediction.layers for prediction in expected.values()}) > 1
    for texts, answer in zip(asked, answers, strict=True):
        predictions = [expected[text] for text in texts]
        assert answer["label"] == [[one.label] for one in predictions]
        assert answer["layers_run"] == [[len(one.layers)] for one in predictions]
        assert answer["truncated"] == [[one.truncated] for one in predictions]
        wanted = [list(one.probabilities.values()) for one in predictions]
        np.testing.assert_allclose(answer["probabilities"], wanted, atol=CLOSE)


def test_pairs_are_scored_and_several_labels_are_given(server: Server):
    by_pairs, by_tags = server.ask(
        question("relevance", [first for first, _ in PAIRS], pairs=[second for _, second in PAIRS]),
        question("tags", TEXTS[:30]),
    )
    with Predictor.load(server.bundles["relevance"], threads=1) as predictor:
        np.testing.assert_allclose(by_pairs["score"], [[one.score] for one in predictor(PAIRS)], atol=CLOSE)
    with Predictor.load(server.bundles["tags"], threads=1) as predictor:
        predictions = predictor(TEXTS[:30])
    labels = MODELS["tags"][1]
    assert by_tags["given"] == [[label in one.labels for label in labels] for one in predictions]
    wanted = [list(one.probabilities.values()) for one in predictions]
    np.testing.assert_allclose(by_tags["probabilities"], wanted, atol=CLOSE)


def test_a_budget_is_the_models_or_the_requests(server: Server):
    asked, one_layer, full, between = server.ask(
        question("reviews", TEXTS[:32], budget="1"), question("one-layer", TEXTS[:32]), question("full", TEXTS[:32]),
        question("reviews", TEXTS[:32], budget="1.5"),
    )  # fmt: skip
    with Predictor.load(server.bundles["reviews"], threads=1) as predictor:
        for answer, budget in ((asked, 1), (one_layer, 1), (between, 1.5)):
            assert answer["layers_run"] == [[len(one.layers)] for one in predictor(TEXTS[:32], budget=budget)]
        assert asked["layers_run"] != [[len(one.layers)] for one in predictor(TEXTS[:32])]
    assert full["layers_run"] == [[4]] * 32


def test_what_one_request_cannot_have_is_no_reason_for_others_to_go_without(server: Server):
    good = [question("reviews", [text], by=by) for text in TEXTS[:20] for by in ("http", "grpc")]
    bad = {
        "budget 99": question("reviews", ["a"], budget="99"),
        "expected layers per input": question("reviews", ["a"], budget="many"),
        "budget=True": question("reviews", ["a"], budget=True),
        "text: no UTF-8": question("reviews", [{"hex": "ff00"}]),
    }
    mixed = [*good[:10], *bad.values(), *good[10:]]
    answers = server.ask(*mixed)
    refused, answered = answers[10:14], answers[:10] + answers[14:]
    for message, answer in zip(bad, refused, strict=True):
        assert message in answer["error"]
    with Predictor.load(server.bundles["reviews"], threads=1) as predictor:
        labels = [prediction.label for prediction in predictor(TEXTS[:20])]
    assert [answer["label"][0][0] for answer in answered] == [label for label in labels for _ in range(2)]


def test_tritons_own_classification_knows_the_labels(server: Server):
    [answer] = server.ask(question("reviews", TEXTS[:5], classes={"probabilities": 1}))
    with Predictor.load(server.bundles["reviews"], threads=1) as predictor:
        labels = [prediction.label for prediction in predictor(TEXTS[:5])]
    assert [row[0].split(":")[2] for row in answer["probabilities"]] == labels


def test_the_examples_client_prints_an_answer_for_each_text(server: Server):
    client = Path(__file__).parents[2] / "examples" / "triton" / "client.py"
    command = [ENVIRONMENT / "bin" / "python", client, server.addresses[0], "reviews", *TEXTS[:3], "--budget", "1.5"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 3 and all("label" in line and "layers_run" in line for line in lines)
