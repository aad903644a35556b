"""Several processes against one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hadskip_export.modeling.checkpoint import load_student
from hadskip_export.trainers.batches import ordered_batches
from hadskip_export.trainers.checkpoints import Checkpoints
from hadskip_export.trainers.losses import budget_penalty
from hadskip_export.trainers.methods import HADSKIP
from hadskip_export.trainers.processes import Processes
from hadskip_export.trainers.run_folder import RunFolder
from hadskip_export.trainers.settings import those_read
from tests.conftest import QUICK
from tests.trainers.datasets import random_dataset

SHORT = (*QUICK, "stage1_epochs=2", "shared_epochs=2", "fit_steps=30", "epochs=1", "last_epochs=1")


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 100))
def test_each_row_of_a_batch_is_one_processs_and_shares_add_up(rows, count, seed):
    (batch,) = ordered_batches(random_dataset(rows, seed), rows)
    batch = replace(batch, altered=torch.arange(rows) % 2 == 1)
    parts = [Processes(rank, count).part(batch) for rank in range(count)]
    assert sum(part.share for part in parts) == pytest.approx(1)
    counted = [part for part in parts if part.share]
    assert sorted(row for part in counted for row in part.rows.tolist()) == list(range(rows))
    places = {row: place for place, row in enumerate(batch.rows.tolist())}
    for part in parts:  # one that counts for nothing too: a process without a row would leave the others waiting
        assert len(part.rows) > 0
        for own, row in enumerate(part.rows.tolist()):
            place, length = places[row], int(part.attention_mask[own].sum())
            for ours, theirs in zip(part.inputs, batch.inputs, strict=True):
                assert torch.equal(ours[own, :length], theirs[place, :length])
                assert not theirs[place, length:].any()
            assert part.targets[own] == batch.targets[place] and part.altered[own] == batch.altered[place]
        assert part.attention_mask.sum(dim=1).max() == part.attention_mask.shape[1]


def test_the_penalty_of_parts_has_the_gradient_of_the_whole():
    """Though it is the square of a mean."""
    gates = torch.rand(7, 4, dtype=torch.float64, requires_grad=True)
    budget_penalty(gates, 1.5, "layers").backward()
    wanted, layers = gates.grad.clone(), gates.detach().sum(dim=1).mean()
    gates.grad = None
    for rank in range(3):
        part = gates[rank::3]
        penalty = budget_penalty(part, 1.5, "layers", lambda own: layers)
        assert float(penalty.detach()) == pytest.approx((float(layers) - 1.5) ** 2)
        (penalty * len(part) / 7).backward()
    torch.testing.assert_close(gates.grad, wanted)


def run(folder: Path, arguments: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = str(Path(sys.executable).parent / "hadskip-export")
    # One thread each: a sum's last bits depend on how many share it.
    return subprocess.run(
        [*([*launcher, "--no-python"] if processes > 1 else []), program, "train", *arguments],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(params=["adaptive"])
def arguments(request, model_folder: Path, csv_files: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """Of the recipe that is asked for, and of a model without dropout, of which each process has its own."""
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    train, evaluation = map(str, csv_files)
    files = ["--model", str(model), "--train", train, "--eval", evaluation, "--max-length", "32", "--budget", "2"]
    read = those_read(SHORT, HADSKIP, request.param, fine_tuned=False)
    return [*files, "--recipe", request.param, *(part for one in read for part in ("--set", one))]


@pytest.mark.slow
def test_two_processes_learn_the_weights_of_one(arguments, tmp_path):
    """A body's up to the rounding of its gradients' sums. Gates, which each process fits by itself, are those that one
    process fits to this body, bit for bit. (Those of the other body differ by some ten times what the bodies do: what a
    gate sees is divided by the small spread of the embeddings.)"""
    for processes in (1, 2):
        done = run(tmp_path, [*arguments, "--out", f"by-{processes}", "--json", "-"], processes)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["budgets"]  # once, by the first
        assert done.stderr.count("teacher: ") == 1
    one, two = tmp_path / "by-1", tmp_path / "by-2"
    begun = load_file(tmp_path / "model" / "model.safetensors")
    for checkpoint in ("stage1", "budgets/2"):
        ours, theirs = (load_file(run / checkpoint / "model.safetensors") for run in (two, one))
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            if not name.startswith("gates."):
                torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0, msg=f"{checkpoint}: {name}")
        learned = "encoder.layer.1.output.dense.weight"
        moved = ours[f"bert.{learned}"] - begun.get(f"bert.{learned}", begun.get(learned))
        assert moved.abs().max() > 1e-3
    figures = [json.loads((run / "summary.json").read_text())["budgets"] for run in (two, one)]
    for ours, theirs in zip(*figures, strict=True):
        assert ours["divergence"] == pytest.approx(theirs["divergence"], abs=1e-5)
    logged = [
        {(record["phase"], record["epoch"]): record["task"] for record in map(json.loads, file) if "task" in record}
        for file in ((run / "metrics.jsonl").open() for run in (two, one))
    ]
    assert logged[0] == pytest.approx(logged[1], abs=1e-5) and len(logged[0]) == 4
    by_two = load_file(two / "budgets" / "2" / "model.safetensors")
    again = fit_again(one, two, arguments)
    assert by_two.keys() == again.keys() and sum(name.startswith("gates.") for name in again) == 12
    assert all(torch.equal(weight, again[name]) for name, weight in by_two.items())


def fit_again(folder: Path, other: Path, arguments: list[str]) -> dict[str, torch.Tensor]:
    """The student that the run of `folder` ends with, if it goes on with the teacher and the body of another run."""
    shutil.rmtree(folder / "budgets" / "2")
    (folder / "summary.json").unlink()
    shutil.copytree(other / "stage1", folder / "stage1", dirs_exist_ok=True)
    learned, _ = load_student(other / "budgets" / "2")
    for weight in learned.gates[:-1].parameters():  # the last layer is run always: its gate is not fitted
        weight.data.zero_()
    ended = {"module": learned.state_dict(), "carried": {}, "done": 1_000_000}  # steps: more than there are
    Checkpoints(RunFolder(folder).checkpoints).save("stage III, all budgets", ended)
    done = run(folder.parent, [*arguments, "--out", folder.name, "--resume"], 1)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "budgets" / "2" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["paper"], indirect=True)
def test_joint_training_by_two_processes_ends_and_goes_on_where_it_was_stopped(arguments, tmp_path):
    """Gates open for the rows of one process alone: a layer's gradient is then that process's."""
    command = [*arguments, "--out", "run"]
    assert run(tmp_path, command, 2).returncode == 0
    summary = (tmp_path / "run" / "summary.json").read_bytes()
    kept = load_file(tmp_path / "run" / "budgets" / "2" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "budgets" / "2")
    (tmp_path / "run" / "summary.json").unlink()
    done = run(tmp_path, [*command, "--resume"], 2)
    assert done.returncode == 0 and "budget 3: done before" in done.stderr
    again = load_file(tmp_path / "run" / "budgets" / "2" / "model.safetensors")
    assert all(np.array_equal(weight, again[name]) for name, weight in kept.items())
    assert (tmp_path / "run" / "summary.json").read_bytes() == summary


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_and_none_waits(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").write_text("")
    done = run(tmp_path, [*arguments, "--out", "run"], 2)
    assert done.returncode != 0 and "Error: run: is not empty" in done.stderr
