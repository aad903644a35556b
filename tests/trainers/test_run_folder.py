"""One writer at a time, nothing of somebody else's overwritten, phases whole or not at all."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hadskip_export.data.runs import read_texts
from hadskip_export.support.errors import BundleError
from hadskip_export.trainers.run_folder import (
    RunFolder,
    finished_folder,
    is_finished,
    open_run,
    write_json,
    write_texts,
)

SETTINGS = {"model": "m", "budget": 3, "recipe": {"beta": 1.0, "alpha1": 1.0}, "labels": ("no", "yes")}


def refused(path: Path, settings: dict, resume: bool, *names: str) -> None:
    with pytest.raises(BundleError) as caught, open_run(path, settings, resume):
        pass
    message = str(caught.value)
    assert "\n" not in message
    for name in (str(path), *names):
        assert name in message


def started(path: Path) -> Path:
    """A run that was begun and then stopped."""
    with open_run(path, SETTINGS, resume=False) as run:
        run.stage1.mkdir()
    return path


def test_a_new_run_records_its_settings_and_may_be_resumed_with_the_same(tmp_path):
    out = started(tmp_path / "deep" / "run")
    assert json.loads((out / "recipe.json").read_text()) == json.loads(json.dumps(SETTINGS))
    with open_run(out, SETTINGS, resume=True) as run:
        assert run.path == out and run.stage1.is_dir()


@pytest.mark.parametrize("resume", [True, False])
def test_an_empty_or_absent_folder_starts_over(resume, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "absent"):
        with open_run(out, SETTINGS, resume) as run:
            assert run.recipe.is_file()


def test_a_run_that_is_there_is_refused_without_resume(tmp_path):
    refused(started(tmp_path / "run"), SETTINGS, False, "not empty", "--resume")


@pytest.mark.parametrize("resume", [True, False])
def test_a_foreign_folder_is_refused_and_left_alone(resume, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(tmp_path, SETTINGS, resume, "not empty")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", SETTINGS, False, "is a file")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"budget": 2}, "budget"),
        ({"recipe": {"beta": 2.0, "alpha1": 1.0}}, "recipe"),
        ({"labels": ["yes", "no"]}, "labels"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_changes_nothing(changes, key, tmp_path):
    out = started(tmp_path / "run")
    before = (out / "recipe.json").read_bytes()
    refused(out, SETTINGS | changes, True, "--resume", key)
    assert (out / "recipe.json").read_bytes() == before
    with open_run(out, SETTINGS, resume=True):
        pass  # and the refusal has let go of the lock


def test_resuming_a_run_whose_recipe_is_damaged_is_refused(tmp_path):
    out = started(tmp_path / "run")
    (out / "recipe.json").write_text("{")
    refused(out, SETTINGS, True, "recipe.json")


def test_a_second_run_in_the_same_process_is_refused(tmp_path):
    with open_run(tmp_path / "run", SETTINGS, resume=False):
        refused(tmp_path / "run", SETTINGS, True, "another process")
    with open_run(tmp_path / "run", SETTINGS, resume=True):
        pass


def test_another_process_is_kept_out_until_it_dies(tmp_path):
    """The lock is the kernel's: a killed run leaves none behind."""
    script = f"""
        from pathlib import Path
        from hadskip_export.trainers.run_folder import open_run
        with open_run(Path({str(tmp_path / "run")!r}), {SETTINGS!r}, False):
            print("locked", flush=True)
            input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            refused(tmp_path / "run", SETTINGS, True, "another process")
        finally:
            other.kill()
        other.wait()
        with open_run(tmp_path / "run", SETTINGS, resume=True):
            pass


def test_an_error_inside_the_run_lets_go_of_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run", SETTINGS, resume=False):
        _ = 1 / 0
    with open_run(tmp_path / "run", SETTINGS, resume=True):
        pass


def stopped(path: Path, error: Exception, resume: bool, learned: bool) -> None:
    """A run that ends with `error`, after stage I if it has `learned`."""

    def run_it() -> None:
        with open_run(path, SETTINGS, resume) as run:
            if learned:
                run.stage1.mkdir()
            raise error

    with pytest.raises(type(error)):
        run_it()


def test_a_request_refused_before_anything_was_learned_leaves_nothing(tmp_path):
    stopped(tmp_path / "run", BundleError("no tokenizer"), resume=False, learned=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [BundleError("disk"), ZeroDivisionError()], ids=["refusal", "crash"])
def test_what_was_learned_stays_after_any_error(error, tmp_path):
    stopped(tmp_path / "run", error, resume=False, learned=True)
    assert (tmp_path / "run" / "stage1").is_dir()
    stopped(tmp_path / "run", error, resume=True, learned=False)
    assert (tmp_path / "run" / "stage1").is_dir()


# Phases


def test_a_finished_folder_appears_with_its_content(tmp_path):
    with finished_folder(tmp_path / "budgets" / "3") as part:
        (part / "file").write_text("x")
        assert not (tmp_path / "budgets" / "3").exists()
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))] == [
        "budgets",
        "budgets/3",
        "budgets/3/SHA256SUMS",
        "budgets/3/file",
    ]
    assert is_finished(tmp_path / "budgets" / "3") and not is_finished(tmp_path / "budgets" / "2")


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_phase_is_refused_by_the_name_of_its_file(tmp_path, how):
    with finished_folder(tmp_path / "stage1") as part:
        (part / "deep").mkdir()
        (part / "deep" / "file").write_text("x")
    file = tmp_path / "stage1" / "deep" / "file"
    file.unlink() if how == "missing" else file.write_text("y")
    with pytest.raises(BundleError, match=f"{file}: {'missing' if how == 'missing' else 'damaged'}"):
        is_finished(tmp_path / "stage1")


def test_digests_are_those_of_sha256sum(tmp_path):
    with finished_folder(tmp_path / "stage1") as part:
        (part / "ein Wort").write_text("x")
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "stage1", capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_folder_leaves_nothing(error, tmp_path):
    def interrupted() -> None:
        with finished_folder(tmp_path / "stage1") as part:
            (part / "half").write_text("x")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_of_a_phase_goes(tmp_path):
    (tmp_path / ".stage1.part").mkdir()
    (tmp_path / ".stage1.part" / "half").write_text("x")
    with finished_folder(tmp_path / "stage1") as part:
        assert list(part.iterdir()) == []
    assert [file.name for file in tmp_path.iterdir()] == ["stage1"]


# Small files


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "summary.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}


def test_texts_and_pairs_survive(tmp_path):
    texts = ["a\nb", "\u2028 ü \x85", ('premise, "quoted"', "hypothesis\r\n"), ""]
    write_texts(tmp_path / "texts.jsonl", texts)
    assert read_texts(tmp_path / "texts.jsonl") == texts


def test_log_lines_are_json_with_a_time(tmp_path):
    run = RunFolder(tmp_path)
    run.log(stage="1", value=0.5)
    run.log(stage="2")
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["stage"] == "1" and first["value"] == 0.5 and second["time"] >= first["time"]


def test_a_run_is_replaced_when_told_to_and_nothing_else_is(tmp_path: Path):
    out = tmp_path / "run"
    with open_run(out, SETTINGS, resume=False) as run:
        run.stage1.mkdir()
        run.log(phase="stage1")
        (run.path / "state" / "texts.jsonl").write_text("old")
    with open_run(out, SETTINGS | {"seed": 7}, resume=False, force=True) as run:
        files = {file.relative_to(out).as_posix() for file in out.rglob("*")}
        assert files == {"recipe.json", "state", "state/lock"}
        assert json.loads(run.recipe.read_text())["seed"] == 7
        with pytest.raises(BundleError, match="another process"), open_run(out, SETTINGS, resume=False, force=True):
            pytest.fail("the block must not run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a run folder"), open_run(tmp_path / "other", {}, False, force=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
