"""Workers answer as the Predictor does, errors come through as they are, and every process ends."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import hadskip_export
from hadskip_export.benchmark import systems as systems_module
from hadskip_export.benchmark.systems import CALLS_PER_TURN, System, take_turns
from hadskip_export.routing.routes import as_route
from hadskip_export.runtime import Predictor
from hadskip_export.support.errors import BudgetError, BundleError, EngineError, HadskipError
from tests.conftest import sentences
from tests.runtime.editing import change_manifest, copy_of

TEXTS = [*(text for text, _ in sentences(6, 41)), ("a good film", "a bad plot"), "", "🙂"]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_worker_answers_as_the_predictor_does(bundle: Path):
    before = children()
    with System(str(bundle), {}, TEXTS) as system, Predictor.load(bundle) as predictor:
        assert len(children() - before) == 1
        answers = system.ask("answers", batch_size=32)
        expected = predictor(TEXTS)
        assert [predictor.labels[np.argmax(row)] for row in answers["logits"]] == [p.label for p in expected]
        assert [as_route(row) for row in answers["routes"]] == [p.layers for p in expected]
        seconds = system.ask("calls", calls=[[0, 6], [8]])["seconds"]
        assert len(seconds) == 2 and min(seconds) > 0
        pieces = system.ask("pieces", calls=[[0, 1, 2], [4]], repeats=2)
        assert set(pieces) == {"embeddings", "layer", "last_layer", "head"}
        assert all(seconds > 0 for seconds in pieces.values())
    assert children() == before


def test_options_are_those_of_load(bundle: Path):
    with System(str(bundle), {"router": "full"}, TEXTS) as system:
        assert system.ask("answers", batch_size=32)["routes"] == [[True] * 4] * len(TEXTS)
    with System(str(bundle), {"gate_threshold": 1e9}, TEXTS) as system:
        assert system.ask("answers", batch_size=32)["routes"] == [[False] * 4] * len(TEXTS)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"max_layers": 99}, BudgetError), ({"engine": "trt"}, BundleError), ({"router": "x"}, BudgetError)],
)
def test_what_a_worker_cannot_load_is_the_error_it_would_be_here(
    bundle: Path, options: dict, error: type[HadskipError]
):
    before = children()
    with pytest.raises(HadskipError) as here:
        Predictor.load(bundle, **options)
    with pytest.raises(error) as there, System(str(bundle), options, TEXTS):
        pytest.fail("it must not start")
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)
    assert children() == before


def test_an_engine_error_comes_through(bundle: Path, tmp_path: Path):
    copy = copy_of(bundle, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0].update(engine="abacus"))
    with pytest.raises(EngineError, match="abacus"), System(str(copy), {}, TEXTS):
        pytest.fail("it must not start")


def test_a_worker_that_refused_one_request_answers_the_next(bundle: Path):
    with System(str(bundle), {}, ["good"]) as system:
        assert system.ask("answers", batch_size=32)["routes"]
        with pytest.raises(BudgetError):
            system.ask("load", bundle=str(bundle), options={"max_layers": 99}, texts=[], routes=None)
        assert system.ask("calls", calls=[[0]])["seconds"][0] > 0


@pytest.mark.parametrize("name", ["json", "numpy", "hadskip_export"])
def test_nothing_in_the_current_folder_is_taken_for_a_module(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}")
    with System(str(bundle), {}, ["good"]) as system:
        assert system.ask("calls", calls=[[0]])["seconds"][0] > 0


@pytest.mark.parametrize("found_by", ["the current folder", "PYTHONPATH"])
def test_the_worker_is_of_the_package_that_started_it(bundle: Path, tmp_path: Path, found_by: str):
    package = Path(hadskip_export.__file__).parent
    copy = shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    worker = copy / "benchmark" / "worker.py"
    worker.write_text(
        worker.read_text().replace("return Worker(**arguments), {}", "return Worker(**arguments), {'file': __file__}")
    )
    (tmp_path / "elsewhere").mkdir()
    here, path = (tmp_path, "") if found_by == "the current folder" else (tmp_path / "elsewhere", str(tmp_path))
    code = (
        "import sys; from hadskip_export.benchmark.systems import System\n"
        "with System(sys.argv[1], {}, []) as system: print(system.loaded['file'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], cwd=here, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == (str(worker), "")


def test_a_dead_worker_is_an_error_not_a_wait(bundle: Path):
    before = children()
    with System(str(bundle), {}, TEXTS) as system:
        (worker,) = children() - before
        os.kill(worker, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=10)
        for _ in range(2):
            with pytest.raises(HadskipError, match="died"):
                system.ask("calls", calls=[[0]])
    assert children() == before


def test_what_a_worker_did_not_expect_is_told_in_one_line_and_it_answers_the_next(bundle: Path):
    with System(str(bundle), {}, TEXTS) as system:
        with pytest.raises(HadskipError, match=r"worker failed \(IndexError: .+\)") as error:
            system.ask("calls", calls=[[10**6]])
        assert "\n" not in str(error.value)
        assert system.ask("calls", calls=[[0]])["seconds"][0] > 0


def test_forced_routes_are_run_and_the_gates_do_not_matter(bundle: Path):
    routes = np.random.default_rng(0).random((len(TEXTS), 4)) < 0.5
    with System(str(bundle), {"gate_threshold": 1e9}, TEXTS, routes) as system:
        assert system.ask("answers", batch_size=32)["routes"] == routes.tolist()


def test_turns_fill_a_table_of_calls_by_turns(bundle: Path):
    calls = [np.array([0, 1]), np.array([2]), np.array([3, 4])]
    with System(str(bundle), {}, TEXTS) as first, System(str(bundle), {"router": "full"}, TEXTS) as second:
        found = take_turns({"a": first, "b": second}, calls, 4, "turns")
    assert set(found.seconds) == set(found.idle_share) == {"a", "b"}
    for table in found.seconds.values():
        assert table.shape == (3, 4)
        assert (table > 0).all()


class Recording:
    """Notes who was asked, in place of a process, to see the order of turns. `idle`: processor seconds used whenever
    somebody asks."""

    def __init__(self, name: str, notes: list, idle: float = 0.0):
        self.name, self.notes, self.idle, self.used = name, notes, idle, 0.0

    def ask(self, request: str, calls: Any = None) -> dict[str, Any]:
        if request == "cpu":
            self.used += self.idle
            return {"seconds": self.used}
        self.notes.append((self.name, calls))
        return {"seconds": [1.0] * len(calls)}


def test_turns_are_interleaved_and_the_order_is_drawn_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems_module, "PAUSE", 0.0001)
    notes: list = []
    systems: dict[str, Any] = {name: Recording(name, notes) for name in "ab"}
    calls, turns = 2 * CALLS_PER_TURN + 3, 12
    take_turns(systems, [np.array([i]) for i in range(calls)], turns, "turns")
    timed = iter(notes[2:])  # after the two warm-up calls
    first = []
    for _ in range(turns):
        for start in range(0, calls, CALLS_PER_TURN):
            block = [[row] for row in range(start, min(start + CALLS_PER_TURN, calls))]
            (one, asked), (other, asked_too) = next(timed), next(timed)
            assert asked == asked_too == block
            assert {one, other} == {"a", "b"}
            first.append(one)
    assert next(timed, None) is None
    assert 5 < first.count("a") < len(first) - 5


def test_a_system_that_does_not_rest_is_told_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(systems_module, "PAUSE", 0.0001)
    systems: dict[str, Any] = {"a": Recording("a", []), "b": Recording("b", [], idle=0.01)}
    found = take_turns(systems, [np.array([0])], 3, "turns")
    assert found.idle_share["a"] == 0
    assert found.idle_share["b"] > 0.1


def test_threads_that_spin_are_asleep_before_the_next_turn(bundle: Path):
    """The pool of a full model that may spin stays awake for up to a third of a second."""
    calls = [np.array([0])]
    with (
        System(str(bundle), {"threads": 2}, TEXTS) as skip,
        System(str(bundle), {"threads": 2, "router": "full", "spinning": True}, TEXTS) as full,
    ):
        assert max(take_turns({"skip": skip, "full": full}, calls, 5, "turns").idle_share.values()) < 0.5
