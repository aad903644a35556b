"""`compare` on a tiny task: trained, timed, stopped and gone on with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hadskip_export import build, compare
from hadskip_export.cli import main
from hadskip_export.commands import compare as comparing
from hadskip_export.commands import train as training
from hadskip_export.commands.compare import Comparison
from hadskip_export.data.runs import read_run
from hadskip_export.report import text
from hadskip_export.support.errors import BudgetError, BundleError, DataError, EngineError, RecipeError
from tests.commands.test_bench import command_of
from tests.trainers.runs import QUICKEST

FIGURES = ("metric", "mean_layers", "divergence")
SETTINGS = (*QUICKEST, "fit_steps=50", "stage1_epochs=2", "stage1_lr=2e-3", "body_lr=2e-4")


@pytest.fixture
def asked(model_folder: Path, csv_files: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_folder), "train": str(csv_files[0]), "eval": str(csv_files[1]), "max_length": 32,
        "out": tmp_path / "out", "budgets": [2, 1], "settings": SETTINGS, "timing": False,
    }  # fmt: skip


def untimed(found: Comparison) -> tuple:
    """All that does not depend on the clock."""
    return tuple(replace(result, seconds=None) for result in found.results), found.teacher


def test_every_system_is_trained_from_one_teacher_and_stands_in_the_table(asked):
    page, methods = asked["out"].with_name("page.html"), ["adaptive", "budgeted", "pcee"]
    found = compare(**asked, methods=methods, published=True, report=page)
    understood = main.commands["compare"].make_context("compare", command_of(page)[1]).params
    assert [understood[name] for name in ("train_file", "eval_file", "no_timing", "published", "seeds")] == [
        asked["train"], asked["eval"], True, True, 1,
    ]  # fmt: skip
    assert (understood["out"], understood["settings"], understood["budgets"]) == (asked["out"], SETTINGS, (2, 1))
    assert (understood["methods"], understood["max_length"]) == (tuple(methods), 32)
    assert [line.system for line in found.lines] == [
        *(["adaptive", "budgeted", "budgeted, as published", "pcee", "pcee, as published"] * 2)
    ]
    assert [line.budget for line in found.lines] == [1] * 5 + [2] * 5 and found.engine is None
    runs = asked["out"] / "runs"
    identities = {folder.name: json.loads((folder / "recipe.json").read_text()) for folder in runs.iterdir()}
    assert {name for name, about in identities.items() if not about["fine_tuned"]} == {"adaptive-s0"}
    assert {about["model"] for about in identities.values() if about["fine_tuned"]} == {
        str(asked["out"] / "teachers" / "s0")
    }
    assert {name for name, about in identities.items() if about["recipe"]["alpha1"] == 0} == {
        "budgeted-published-s0-1", "budgeted-published-s0-2", "pcee-published-s0",
    }  # fmt: skip
    for line in found.lines:  # what its run says
        name = line.system.replace(", as published", "-published") + "-s0"
        name += f"-{line.budget:g}" if name.startswith("budgeted") else ""
        row = next(row for row in read_run(runs / name).summary["budgets"] if row["budget"] == line.budget)
        assert (line.metric, line.mean_layers, line.divergence) == (
            row["metric"],
            row["mean_layers"],
            row["divergence"],
        )
        assert (line.above is None) == (line.system == "adaptive")
    assert not [*runs.rglob("budgets"), *runs.rglob("stage1")]  # the teacher has a place of its own
    shown = "\n".join(text.comparison(found))
    assert found.threshold_on == "held-out" and "budgets met on the held-out texts" in shown
    assert "1 of 3 layers" in shown and "pcee, as published" in shown and "calls were not timed" in shown


def test_it_is_said_which_methods_a_setting_changes(asked, capsys, monkeypatch):
    monkeypatch.setattr(comparing, "_Work", lambda *_: 1 / 0)  # they are told before anything is trained
    asked["settings"] = ("exit_lr=1e-3", "batch_size=8", "glide=0.1")
    with pytest.raises(ZeroDivisionError):
        compare(**asked, methods=["judged", "fastbert", "pabee"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--set")]
    assert said == ["--set exit_lr: changes fastbert, judged alone", "--set glide: changes none of these methods"]


def test_one_that_is_stopped_goes_on_to_the_same_table(asked, tmp_path, monkeypatch):
    asked["methods"] = ["adaptive", "branchynet"]
    whole = compare(**asked)
    asked["out"] = tmp_path / "stopped"
    real, calls = training.train, []

    def stopping(**arguments):
        calls.append(arguments["out"].name)
        if len(calls) in (1, 3):
            raise KeyboardInterrupt
        return real(**arguments)

    monkeypatch.setattr(training, "train", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare(**asked)
    assert untimed(compare(**asked)) == untimed(whole)
    assert calls == ["adaptive-s0", "adaptive-s0", "branchynet-s0", "branchynet-s0"]
    assert untimed(compare(**asked)) == untimed(whole) and len(calls) == 4
    more = compare(**asked | {"methods": ["adaptive", "branchynet", "static"]})
    assert untimed(more)[0][:2] == untimed(whole)[0] and len(calls) == 6


def teachers(out: Path) -> set[str]:
    """The models that runs learned from, and that none has a teacher of its own but one for each seed."""
    found = [json.loads((run / "recipe.json").read_text()) for run in (out / "runs").iterdir()]
    own = [about["seed"] for about in found if not about["fine_tuned"]]
    assert len(own) == len(set(own))
    return {about["model"] for about in found if about["fine_tuned"]}


@pytest.mark.slow
def test_whoever_comes_first_later_learns_from_the_teacher_that_is_there(asked):
    first = compare(**asked | {"methods": ["adaptive", "pcee"]})
    for methods in (["pcee", "deebert"], ["paper", "adaptive", "pcee"], ["budgeted"]):
        found = compare(**asked | {"methods": methods})
        assert teachers(asked["out"]) == {str(asked["out"] / "teachers" / "s0")}
        assert {result.teacher for result in found.results} == {first.teacher}
    again = compare(**asked | {"methods": ["adaptive", "pcee"], "seeds": 2})
    assert untimed(again)[0][:2] == untimed(first)[0] and len(again.results) == 4


def test_one_that_was_stopped_with_a_teacher_of_its_own_begins_anew_behind_another(asked, monkeypatch):
    real = training.train

    def stopping(**arguments):
        real(**arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(**asked | {"methods": ["pcee"]})
    monkeypatch.setattr(training, "train", real)
    compare(**asked | {"methods": ["budgeted", "pcee"]})
    assert teachers(asked["out"]) == {str(asked["out"] / "teachers" / "s0")}


def test_speed_of_wrong_answers_is_not_told(asked, monkeypatch):
    def failing(*arguments, **options):
        return replace(build(*arguments, **options), first_bad_piece="head")

    monkeypatch.setattr(comparing, "build", failing)
    with pytest.raises(EngineError, match="does not give PyTorch's answers"):
        compare(**asked | {"timing": True, "methods": ["budgeted"], "budgets": [1]})


def test_a_mistake_leaves_the_folder_to_whoever_mends_it(asked):
    with pytest.raises(DataError):
        compare(**asked | {"train": "/nowhere.csv", "methods": ["budgeted"], "budgets": [1]})
    (asked["out"] / "lock").parent.mkdir(exist_ok=True)
    (asked["out"] / "lock").touch()
    compare(**asked | {"methods": ["budgeted"], "budgets": [1]})


@pytest.mark.slow
def test_calls_are_timed_beside_full_bert(asked):
    found = compare(**asked | {"timing": True, "methods": ["adaptive", "pabee", "static"], "budgets": [1]})
    assert found.engine == "ort-fp32"
    for result in found.results:
        for figures in result.figures:
            latency = figures.latency
            assert (
                latency is not None and latency.engine == "ort-fp32" and latency.low <= latency.speedup <= latency.high
            )
            assert 0 < latency.p50_ms < 1000 and 0 < latency.full_p50_ms < 1000
    assert all(line.p50_ms and line.speedup for line in found.lines)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"methods": ["magic"]}, RecipeError, "--method magic"),
        ({"budgets": [1, 9]}, BudgetError, "--budget 9"),
        ({"budgets": [2, 2]}, BudgetError, "each once"),
        ({"settings": ("alpha1=0",)}, RecipeError, "alpha1=0"),
        ({"budgets": [1.5]}, BudgetError, "whole numbers"),
        ({"timing": True, "engine": "trt"}, EngineError, "trt"),
        ({"timing": True, "precision": "bf16"}, EngineError, "--precision bf16"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(asked, changes, kind, message):
    with pytest.raises(kind, match=message):
        compare(**asked | changes)
    assert not asked["out"].exists()


def test_results_on_other_texts_do_not_stand_in_one_table(asked, tmp_path):
    texts = tmp_path / "train.csv"
    texts.write_bytes(Path(asked["train"]).read_bytes())
    compare(**asked | {"train": str(texts)}, methods=["budgeted"])
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(BundleError, match="a comparison with another data"):
        compare(**asked | {"train": str(texts)}, methods=["budgeted", "branchynet"])


def test_a_folder_of_something_else_is_left_alone(asked, tmp_path):
    asked["methods"] = ["budgeted"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="not empty and not a comparison"):
        compare(**asked)
    asked["out"] = tmp_path / "other"
    compare(**asked)
    with pytest.raises(BundleError, match="another budgets"):
        compare(**asked | {"budgets": [1]})
    with pytest.raises(BundleError, match="another settings"):
        compare(**asked | {"settings": ()})


def test_the_command_prints_the_table(asked):
    arguments = ["compare", "--model", asked["model"], "--train", asked["train"], "--eval", asked["eval"]]
    arguments += ["--out", str(asked["out"]), "--budget", "1", "--method", "adaptive", "--method", "deebert"]
    arguments += ["--max-length", "32", "--no-timing", *(part for one in SETTINGS for part in ("--set", one))]
    done = CliRunner().invoke(main, [*arguments, "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [line["system"] for line in found["lines"]] == ["adaptive", "deebert"] and found["layers"] == 3
