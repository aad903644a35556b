"""A training that is stopped anywhere goes on to the same weights, bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from hadskip_export.support.errors import BundleError
from hadskip_export.trainers import checkpoints, loop
from hadskip_export.trainers.checkpoints import Checkpoints
from hadskip_export.trainers.loop import seed_step
from tests.conftest import QUICK
from tests.trainers.runs import QUICKEST, read, repeat

FIT = ("fit_steps=30", "fit_rows=200")
COMMANDS = {
    "paper": {"settings": (*QUICK, "stage1_epochs=2", "last_epochs=1", "accumulate=3")},
    "adaptive": {"recipe": "adaptive", "settings": (*QUICK, *FIT, "stage1_epochs=2", "shared_epochs=2")},
    "static": {"method": "static", "budget": 2, "settings": (*QUICKEST, "epochs=1")},
}


class StoppedError(Exception):
    """In place of a kill."""


def weights(run: Path) -> dict[str, bytes]:
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in sorted(run.rglob("*.safetensors"))}


@pytest.mark.parametrize("command", COMMANDS)
def test_wherever_it_is_stopped_it_ends_with_the_same_weights(
    command: str, model_folder: Path, csv_files: tuple[Path, Path], tmp_path: Path, monkeypatch
):
    """Stopped time and again at its ninth step, in whatever phase that is, some steps after the last checkpoint."""
    repeat(model_folder, csv_files, tmp_path / "whole", **COMMANDS[command])
    asked, steps, phases, seed_step = 0, 0, set(), loop.seed_step

    def due(_: Checkpoints) -> bool:
        nonlocal asked
        asked += 1
        return asked % 2 == 0

    def seeding(seed: int, phase: str, number: int) -> None:
        nonlocal steps
        phases.add(phase)
        steps += 1
        if steps % 9 == 0:
            raise StoppedError
        seed_step(seed, phase, number)

    monkeypatch.setattr(Checkpoints, "due", due)
    monkeypatch.setattr(loop, "seed_step", seeding)
    stops, finished = 0, False
    while not finished and stops < 50:
        torch.manual_seed(stops)  # whatever was drawn before
        try:
            repeat(model_folder, csv_files, tmp_path / "stopped", resume=True, **COMMANDS[command])
            finished = True
        except StoppedError:
            stops += 1
    assert finished and stops >= 3 and len(phases) >= 2
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert read(tmp_path / "stopped" / "summary.json") == read(tmp_path / "whole" / "summary.json")
    assert not (tmp_path / "stopped" / "state" / "checkpoints").exists()


def test_a_checkpoint_comes_after_a_minute_and_costs_a_small_share_of_the_time(tmp_path: Path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    kept = Checkpoints(tmp_path / "checkpoints")
    now = 59.0
    assert not kept.due()
    now = 61.0
    assert kept.due() and not Checkpoints().due()

    def slow(*_: object) -> None:
        nonlocal now
        now += 6.0

    monkeypatch.setattr(checkpoints.torch, "save", slow)
    kept.save("stage I", {})
    now = 67.0 + 199.0
    assert not kept.due()
    now = 67.0 + 201.0
    assert kept.due()


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save("stage III, all budgets", {"done": 3, "module": {"weight": torch.ones(1000)}})
    assert kept.load("stage III, all budgets", "cpu")["done"] == 3 and kept.load("stage I", "cpu") is None
    (file,) = (tmp_path / "checkpoints").rglob("*.pt")
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:1500] + b"\xff" * 64 + content[1564:]):
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"stage-iii-all-budgets.pt: damaged.*remove it .* --resume"):
            kept.load("stage III, all budgets", "cpu")


def test_threads_are_those_the_run_began_with(model_folder: Path, csv_files: tuple[Path, Path], tmp_path: Path):
    """And those of the process are as they were."""
    run, command = tmp_path / "run", COMMANDS["paper"]
    repeat(model_folder, csv_files, run, **command)
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["threads"] == torch.get_num_threads()
    (run / "recipe.json").write_text(json.dumps(recipe | {"threads": recipe["threads"] + 1}))
    repeat(model_folder, csv_files, run, resume=True, **command)
    assert json.loads((run / "recipe.json").read_text())["threads"] == recipe["threads"] + 1
    assert torch.get_num_threads() == recipe["threads"]


def test_what_a_step_draws_depends_on_seed_phase_and_number():
    drawn = []
    for at in [(0, "stage I", 0), (0, "stage I", 0), (1, "stage I", 0), (0, "stage II", 0), (0, "stage I", 1)]:
        seed_step(*at)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4
