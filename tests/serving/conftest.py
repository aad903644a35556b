"""Bundles behind a real server, in this process, and ways to ask it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from hadskip_export.routing.points import Point
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.serving.app import create_app
from hadskip_export.serving.limits import Limits
from hadskip_export.serving.service import Service
from tests.conftest import make_source, write_cut


@dataclass(frozen=True)
class Answer:
    """Of an HTTP request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, path: str, question: Any = None, **headers: str) -> Answer:
    """GET without a question, else POST it: JSON, or bytes as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = question if isinstance(question, bytes) else None if question is None else json.dumps(question)
    headers = {"Content-Type": "application/json"} | headers
    connection.request("GET" if question is None else "POST", path, body, headers)
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


@dataclass(frozen=True)
class Served:
    """A service that listens."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, question: Any = None, **headers: str) -> Answer:
        """See `ask`."""
        return ask(self.port, path, question, **headers)

    def metric(self, name: str) -> float:
        """The sum over labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextmanager
def serving(bundle: Path, limits: Limits | None = None, token: str | None = None, floor: float | None = None):
    service = Service(lambda: Predictor.load(bundle, threads=1), bundle, limits or Limits(), floor)
    config = uvicorn.Config(create_app(service, token), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(service, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def points_bundle(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With operating points for 1, 2 and 4 of its layers."""
    thresholds = {1.0: 2.0, 2.0: 0.0, 4.0: -50.0}
    points = tuple(Point(budget, (at,) * 4, "evaluation", budget) for budget, at in thresholds.items())
    return write_cut(replace(source, points=points), tmp_path_factory.mktemp("points"), "whole")


@pytest.fixture(scope="session")
def ranking_bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranking")
    source = make_source(model_folder, folder, labels=("LABEL_0",), problem_type="ranking")
    return write_cut(source, folder, "whole")


@pytest.fixture(scope="session")
def labels_bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several labels at once."""
    folder = tmp_path_factory.mktemp("labels")
    source = make_source(model_folder, folder, labels=("a", "b", "c"), problem_type="multi_label_classification")
    return write_cut(source, folder, "whole")


@pytest.fixture(scope="module")
def served(points_bundle: Path) -> Iterator[Served]:
    with serving(points_bundle) as found:
        yield found
