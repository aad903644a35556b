"""Reading a finished run: what it gives, without torch, and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hadskip_export.data.runs import Run, read_run
from hadskip_export.support.errors import BudgetError, BundleError
from hadskip_export.trainers.run_folder import open_run


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def edit(run_folder: Path, folder: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of the run's small files with one of them changed."""
    copy = Path(shutil.copytree(run_folder, folder / "run", ignore=shutil.ignore_patterns("*.safetensors")))
    content = read(copy / file)
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


@pytest.fixture
def run(run_folder: Path) -> Run:
    return read_run(run_folder)


def test_a_run_says_what_it_was_trained_for_and_what_it_came_to(run, run_folder):
    assert (run.task, run.metric, run.layers, run.max_length, run.budget) == ("train", "accuracy", 3, 32, 1.5)
    assert run.summary == read(run_folder / "summary.json")
    assert run.teacher_metric == run.summary["teacher"]["metric"]
    assert run.paths.tokenizer.is_file() and run.paths.stage1.is_dir()
    assert len(run.texts()) == 104


def test_every_budget_on_the_way_has_a_checkpoint_with_its_figures(run, run_folder):
    assert [checkpoint.budget for checkpoint in run.checkpoints] == [3, 2, 1.5]
    for checkpoint, row in zip(run.checkpoints, run.summary["budgets"], strict=True):
        assert checkpoint.folder == run_folder / "budgets" / f"{row['budget']:g}"
        section = read(checkpoint.folder / "config.json")["hadskip"]
        assert (checkpoint.budget, checkpoint.threshold) == (section["budget"], section["gate_threshold"])
        assert (checkpoint.mean_layers, checkpoint.metric) == (row["mean_layers"], row["metric"])
        assert checkpoint.threshold_on == "evaluation"
        assert checkpoint.routes[0] == (tuple(row["top_route"]), row["top_route_share"])
        shares = [share for _, share in checkpoint.routes]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)  # eight routes at most
        assert sum(len(route) * share for route, share in checkpoint.routes) == pytest.approx(row["mean_layers"])


@pytest.mark.parametrize(("budget", "found"), [(None, 1.5), (0.5, 1.5), (1.5, 1.5), (2, 2), (3, 3)])
def test_a_budget_may_be_a_share_of_the_layers_and_is_the_one_asked_for_if_left_out(budget, found, run):
    assert run.checkpoint(budget).budget == found


def test_of_another_budget_it_says_which_there_are(run):
    with pytest.raises(BudgetError, match=r"--budget 2.5: .* has checkpoints for 3, 2, 1\.5; .* train a run with"):
        run.checkpoint(2.5)
    with pytest.raises(BudgetError, match="3 layers"):
        run.checkpoint(4)


def test_a_checkpoint_whose_folder_is_gone_is_refused(run_folder, tmp_path):
    copy = edit(run_folder, tmp_path, "recipe.json", lambda _: None)
    shutil.rmtree(copy / "budgets" / "2")
    with pytest.raises(BudgetError, match="--budget 2"):
        read_run(copy).checkpoint(2)


def test_whose_texts_met_the_budget_is_what_the_recipe_says(run_folder, tmp_path):
    copy = edit(run_folder, tmp_path, "recipe.json", lambda r: r["recipe"].update(threshold_on="held-out"))
    assert {checkpoint.threshold_on for checkpoint in read_run(copy).checkpoints} == {"held-out"}


def test_of_an_older_run_it_knows_the_commonest_route(run_folder, tmp_path):
    copy = edit(run_folder, tmp_path, "summary.json", lambda s: [row.pop("commonest_routes") for row in s["budgets"]])
    for old, new in zip(read_run(copy).checkpoints, read_run(run_folder).checkpoints, strict=True):
        assert old.routes == new.routes[:1]


def test_what_is_no_run_or_has_not_finished_is_refused(tmp_path):
    with pytest.raises(BundleError, match="not a run folder"):
        read_run(tmp_path)
    with open_run(tmp_path / "run", {"budget": 3}, resume=False):
        pass
    with pytest.raises(BundleError, match=r"has not finished.*--resume"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("file", ["recipe.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
def test_a_damaged_file_is_refused(file, content, run_folder, tmp_path):
    copy = edit(run_folder, tmp_path, file, lambda _: None)
    (copy / file).write_text(content)
    with pytest.raises(BundleError, match="damaged") as caught:
        read_run(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [None, 3, ["row"], [[]], [{}], [{"budget": "two"}]], ids=str)
def test_a_summary_whose_rows_are_none_is_refused(rows, run_folder, tmp_path):
    copy = edit(run_folder, tmp_path, "summary.json", lambda summary: summary.update(budgets=rows))
    with pytest.raises(BundleError, match="damaged run folder"):
        read_run(copy)


def test_damaged_texts_are_refused(run_folder, tmp_path):
    copy = edit(run_folder, tmp_path, "recipe.json", lambda _: None)
    (copy / "state" / "texts.jsonl").write_text("3\n")
    with pytest.raises(BundleError, match=r"texts\.jsonl: damaged"):
        read_run(copy).texts()


def test_no_torch_is_needed(run_folder):
    code = "import sys; sys.modules['torch'] = None; from hadskip_export.data.runs import read_run\n"
    code += "from pathlib import Path; run = read_run(Path(sys.argv[1])); run.texts(); print(run.checkpoint().budget)"
    done = subprocess.run([sys.executable, "-c", code, run_folder], capture_output=True, text=True, check=True)
    assert done.stdout == "1.5\n"
