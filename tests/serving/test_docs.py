"""docs/service: every command of the page, as it stands there, one after the other."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hadskip_export.routing.points import Point
from tests.conftest import make_source, sentences, write_csv, write_cut
from tests.serving.conftest import ask

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "service.md"
TEXTS = [text for text, _ in sentences(300, 3)]
# What wants more than this machine has: an environment of its own, a generator of load, a daemon of containers.
LEFT_OUT = ("pip install", "python benchmarks/serving.py", "docker ", "tritonserver")


def parts() -> list[tuple[str, str]]:
    """("sh", line) of the indented lines and ("python", block) of the fenced ones, in their order."""
    found = []
    for block in re.finditer(r"^```python\n(.*?)^```|^    (\S[^\n]*)$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        found.append(("python", block[1]) if block[1] else ("sh", block[2]))
    return found


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """With what the page speaks of: a bundle of twelve layers with operating points, and texts of today."""
    source = make_source(model_folder, tmp_path, layers=12)
    routes = ((tuple(range(1, 7)), 1.0),)
    points = tuple(
        Point(budget, (5.0 - budget,) * 12, "evaluation", budget, routes) for budget in (3.0, 6.0, 9.0, 12.0)
    )
    write_cut(replace(source, points=points, budget=6.0), tmp_path, "whole")
    write_csv(tmp_path / "today.csv", [(text,) for text in TEXTS], ("text",))
    return tmp_path


def ended(service: subprocess.Popen | None) -> None:
    if service is not None:
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=60) == 0


def test_every_command_of_the_page_does_what_it_says(folder: Path):
    program = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{program}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "0"}
    service, ran = None, []
    try:
        for kind, code in parts():
            if code.startswith(LEFT_OUT):
                continue
            ran.append(code)
            if " serve " in f"{code} " and kind == "sh":
                ended(service)
                itself = code.replace("hadskip-export", "exec hadskip-export", 1)  # not the shell's child
                service = subprocess.Popen(itself, shell=True, cwd=folder, env=environment)
                wait_for(service)
                continue
            command = [sys.executable, "-c", code] if kind == "python" else code
            done = subprocess.run(
                command, shell=kind == "sh", cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            drifted = code.startswith("hadskip-export inspect") and done.returncode == 1
            assert done.returncode == 0 or drifted, f"{code}\n{done.stdout}{done.stderr}"
            if code.startswith("curl"):
                answer = json.loads(done.stdout)
                assert "error" not in answer and answer, code
    finally:
        ended(service)
    assert sum("serve" in code for code in ran) >= 3 and sum(code.startswith("curl") for code in ran) >= 2


def wait_for(service: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            if ask(8000, "/health").status == 200:
                return
        except OSError:
            assert service.poll() is None
        time.sleep(0.05)
    raise AssertionError("it does not listen")
