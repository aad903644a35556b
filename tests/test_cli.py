"""Every command on tiny models; every bad input ends with one line, exit code 2, and nothing half-written."""

import csv
import inspect as signatures
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, get_args

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

import hadskip_export
from hadskip_export.cli import main
from hadskip_export.data.glue import GLUE_TASKS
from hadskip_export.report.plain import to_json
from hadskip_export.runtime import BundleError, EngineError, Prediction, Predictor, read_bundle
from hadskip_export.runtime.engines import ENGINES, PRECISIONS, Cut
from hadskip_export.support.signals import Ended
from hadskip_export.trainers.methods import HADSKIP, METHODS
from hadskip_export.trainers.settings import those_read
from hadskip_export.verification import parity
from tests.conftest import QUICK, sentences, write_csv
from tests.runtime.editing import add_to_weights, change_manifest, change_piece
from tests.trainers.runs import QUICKEST

SETTINGS = [part for setting in QUICK for part in ("--set", setting)]


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, *parts: str) -> None:
    """Checks that a command ended with one line that has all of `parts`, and with exit code 2."""
    assert isinstance(result.exception, SystemExit), f"a traceback: {result.exception!r}"
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    for part in parts:
        assert part in errors[0]


@dataclass(frozen=True)
class Made:
    """What the first commands made of each other's output, and what they said."""

    model: Path
    train: Path
    eval: Path
    run: Path
    bundle: Path
    trained: Result
    built: Result


@pytest.fixture(scope="module")
def made(model_folder: Path, csv_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("cli")
    trained = run(
        "train", "--model", model_folder, "--budget", 2, "--train", csv_files[0], "--eval", csv_files[1],
        "--out", folder / "run", "--max-length", 32, "--recipe", "paper", *SETTINGS,
    )  # fmt: skip
    built = run(
        "build", folder / "run", "--engine", "ort", "--precision", "fp32", "--cut", "gates", "--out", folder / "bundle"
    )
    return Made(model_folder, *csv_files, folder / "run", folder / "bundle", trained, built)


# The whole way


def test_train_writes_a_run_and_prints_the_frontier(made: Made):
    succeeded(made.trained)
    assert f"written: {made.run}" in made.trained.stdout
    counts = Counter(row["label"] for row in csv.DictReader(made.train.open()))
    assert f"classes: negative {counts['negative']}, positive {counts['positive']}\n" in made.trained.stderr
    summary = json.loads((made.run / "summary.json").read_text())
    assert [row["budget"] for row in summary["budgets"]] == [3, 2]
    for row in summary["budgets"]:
        assert f"{row['metric']:.4f}" in made.trained.stdout


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], {"method": "hadskip", "route": None, "recipe": None}),
        (["--method", "budgeted"], {"method": "budgeted", "route": None}),
        (["--method", "static", "--route", "1,2"], {"method": "static", "route": (1, 2)}),
        (["--method", "static", "--route", " 1, 3"], {"route": (1, 3)}),
        (["--recipe", "adaptive"], {"recipe": "adaptive"}),
        (["--recipe", "mine.toml", "--set", "beta=2", "--set", "glide=0"], {"settings": ("beta=2", "glide=0")}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_passes_its_options_on(made: Made, tmp_path: Path, monkeypatch, options: list[str], arguments: dict):
    asked = {}
    summary = json.loads((made.run / "summary.json").read_text())
    monkeypatch.setattr(hadskip_export, "train", lambda **given: asked.update(given) or summary, raising=False)
    succeeded(run("train", "--model", "m", "--budget", 2, "--out", tmp_path / "out", *options))
    assert asked | arguments == asked


@pytest.mark.parametrize(
    ("method", "options"),
    [(HADSKIP, ["--recipe", "adaptive"]), ("static", ["--method", "static", "--route", "1,3"])],
    ids=["adaptive", "static"],
)
def test_train_knows_other_ways_to_routes(made: Made, tmp_path: Path, method: str, options: list[str]):
    out = tmp_path / "run"
    settings = those_read((*QUICKEST, "fit_steps=50"), method, None, fine_tuned=False)
    result = succeeded(
        run(
            "train", "--model", made.model, "--budget", 2, "--train", made.train, "--eval", made.eval, "--out", out,
            "--max-length", 32, *(part for one in settings for part in ("--set", one)), *options,
        )
    )  # fmt: skip
    row = json.loads((out / "summary.json").read_text())["budgets"][-1]
    assert row["budget"] == 2 and f"{row['metric']:.4f}" in result.stdout
    assert ("static" in options) == (row["routes"] == 1 and row["top_route"] == [1, 3])


def test_build_writes_a_bundle_and_prints_parity(made: Made):
    succeeded(made.built)
    assert "parity passed" in made.built.stdout
    assert made.built.stdout.splitlines()[-1] == f"written: {made.bundle}"
    manifest = read_bundle(made.bundle).manifest
    assert [point.budget for point in manifest.points] == [manifest.default_budget] == [2]


def test_validate(made: Made):
    assert "parity passed" in succeeded(run("validate", made.bundle)).stdout
    output = succeeded(run("validate", made.bundle, "--engine", "ort", "--data", made.eval)).stdout
    metric = json.loads((made.run / "summary.json").read_text())["budgets"][-1]["metric"]
    assert f"data: 80 texts, accuracy {metric:.4f}" in output
    assert "for the better" in output


def test_validate_writes_json_whatever_the_answer_is(made: Made, tmp_path: Path):
    file = tmp_path / "validation.json"
    output = succeeded(run("validate", made.bundle, "--data", made.eval, "--json", file)).stdout
    assert output.splitlines()[-1] == f"written: {file}"
    found = json.loads(file.read_text())
    assert found["passed"]
    assert found["data"]["texts"] == 80
    assert [score["label"] for score in found["data"]["classes"]] == ["negative", "positive"]
    copy = copied(made, tmp_path)
    change_piece(copy, "head", add_to_weights(float("nan")))
    assert run("validate", copy, "--json", file).exit_code == 1
    found = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert not found["passed"]
    assert found["golden"]["logits_largest"] is None
    refused(run("validate", made.bundle, "--json", tmp_path / "missing" / "a.json"), "--json", "missing")


def test_validate_says_no_with_exit_code_1(made: Made, tmp_path: Path):
    copy = Path(shutil.copytree(made.bundle, tmp_path / "copy"))
    change_piece(copy, "layer_02", add_to_weights(0.5))
    result = run("validate", copy)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "Error" not in result.stderr


def test_build_says_no_with_exit_code_1_and_the_bundle_is_there(made: Made, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(parity.PIECE_TOLERANCE, "head", -1.0)  # no difference is small enough
    result = run("build", made.run, "--no-full", "--cut", "layers", "--budget", 3, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "parity FAILED at head" in result.stdout
    with pytest.raises(BundleError, match="parity"):
        Predictor.load(tmp_path / "bundle")
    refused(run("predict", tmp_path / "bundle", "good"), "parity", "head")
    assert "parity failed" in succeeded(run("inspect", tmp_path / "bundle")).stdout


def lines(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def shown(prediction: Prediction) -> dict:
    """Of an answer of one label what a command shows."""
    return {name: getattr(prediction, name) for name in ("label", "probabilities", "layers", "truncated")}


def expected(made: Made, texts, **options) -> list[dict]:
    with Predictor.load(made.bundle) as predictor:
        return json.loads(json.dumps([shown(prediction) for prediction in predictor(texts, **options)]))


def equal(got: list[dict], wanted: list[dict]) -> bool:
    return all(
        {**a, "probabilities": None} == {**b, "probabilities": None}
        and a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)
        for a, b in zip(got, wanted, strict=True)
    )


def numbered(answers: list[dict], first: int = 2, **others: list) -> list[dict]:
    """Answers to the rows of a file, of which one begins on every line from `first` on. `others`: its other columns."""
    columns = [dict(zip(others, row, strict=True)) for row in zip(*others.values(), strict=True)] or [{}] * len(answers)
    rows = enumerate(zip(columns, answers, strict=True), start=first)
    return [{"line": line, **row, **answer} for line, (row, answer) in rows]


def test_predict_prints_a_line_per_text(made: Made):
    texts = ["a good film", "naïve 🙂", "a dull plot " * 40]
    assert equal(lines(succeeded(run("predict", made.bundle, *texts)).stdout), expected(made, texts))
    got = lines(run("predict", made.bundle, "good", "--pair", "bad").stdout)
    assert equal(got, expected(made, [("good", "bad")]))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--router", "full"], {"router": "full"}),
        (["--gate-threshold", "1e9"], {"gate_threshold": 1e9}),
        (["--gate-threshold", "-1e9", "--max-layers", "2"], {"gate_threshold": -1e9, "max_layers": 2}),
        (["--budget", "2"], {"budget": 2}),
        (["--engine", "ort-fp32-gates"], {}),
        (["--engine", "ort", "--precision", "fp32", "--cut", "gates"], {}),
    ],
)
def test_predict_passes_its_options_on(made: Made, arguments: list[str], options: dict):
    texts = ["a good film", "a bad plot and a story"]
    got = lines(succeeded(run("predict", made.bundle, *texts, *arguments)).stdout)
    assert equal(got, expected(made, texts, **options))


def test_predict_reads_and_writes_files(made: Made, tmp_path: Path):
    output = tmp_path / "answers.jsonl"
    result = succeeded(run("predict", made.bundle, "--input", made.eval, "--output", output))
    assert result.stdout == ""
    texts, labels = map(list, zip(*sentences(80, 1), strict=True))
    assert equal(lines(output.read_text()), numbered(expected(made, texts), input_label=labels))
    assert os.listdir(tmp_path) == ["answers.jsonl"]


def test_predict_finds_columns_by_name_and_by_option(made: Made, tmp_path: Path):
    pairs = write_csv(tmp_path / "pairs.csv", [("good", "bad"), ("a film", "a plot")], ("premise", "hypothesis"))
    wanted = expected(made, [("good", "bad"), ("a film", "a plot")])
    assert equal(lines(succeeded(run("predict", made.bundle, "--input", pairs)).stdout), numbered(wanted))
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": "good", "b": "bad"}\n{"b": "a plot", "a": "a film"}\n')
    options = ("--text-column", "a", "--pair-column", "b")
    assert equal(lines(succeeded(run("predict", made.bundle, "--input", other, *options)).stdout), numbered(wanted, 1))
    tsv = tmp_path / "texts.tsv"
    tsv.write_text('sentence\tid\n"a good" film\t1\n')
    assert equal(
        lines(run("predict", made.bundle, "--input", tsv).stdout), numbered(expected(made, ['"a good" film']), id=["1"])
    )


def test_inspect_knows_bundles_and_runs(made: Made):
    output = succeeded(run("inspect", made.bundle)).stdout
    for part in (
        "3 layers of 32",
        "negative, positive",
        "2 of 3 layers, the default",
        "ort-fp32-gates",
        "parity passed",
        "operating points",
    ):
        assert part in output
    assert json.loads(succeeded(run("inspect", made.bundle, "--json", "-")).stdout)["format"] == 2
    assert "teacher" in succeeded(run("inspect", made.run)).stdout
    summary = json.loads((made.run / "summary.json").read_text())
    assert json.loads(succeeded(run("inspect", made.run, "--json", "-")).stdout) == summary


def test_bench_prints_and_writes_figures(made: Made, tmp_path: Path):
    file = tmp_path / "bench.json"
    result = succeeded(run("bench", made.bundle, "--data", made.eval, "--batch", 40, "--batch", 80, "--json", file))
    assert sum(line.startswith("speedup") for line in result.stdout.splitlines()) == 2
    figures = json.loads(file.read_text())
    assert set(figures) == {"environment", "rows", "peers"}
    assert [row["batch"] for row in figures["rows"]] == [40, 80]


def program(*arguments: object, **options) -> subprocess.Popen[str]:
    """Starts the installed program in a process of its own."""
    found = shutil.which("hadskip-export", path=str(Path(sys.executable).parent))
    assert found, "the package is not installed in this environment"
    command = [found, *map(str, arguments)]
    # A shell that runs the tests in its background has them, and what they start, ignore interrupts.
    options |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


JSON_OF = {
    "validate": (["--engine", "ort"], {"passed", "golden", "parity", "data"}),
    "bench": (["--batch", 64], {"environment", "rows"}),
    "inspect": ([], {"format", "engines"}),
}


@pytest.mark.parametrize("command", JSON_OF)
def test_json_has_one_meaning_everywhere(made: Made, tmp_path: Path, command: str):
    """To a file it comes beside the text; to standard output, instead of it."""
    options, keys = JSON_OF[command]
    printed = json.loads(succeeded(run(command, made.bundle, *options, "--json", "-")).stdout)
    assert keys <= set(printed)
    file = tmp_path / "result.json"
    lines = succeeded(run(command, made.bundle, *options, "--json", file)).stdout.splitlines()
    assert len(lines) > 3 and lines[-1] == f"written: {file}"
    assert json.loads(file.read_text()).keys() == printed.keys()
    assert not Path("-").exists()


def test_every_command_with_a_result_has_json():
    having = {name for name, command in main.commands.items() if any(p.name == "json_file" for p in command.params)}
    others = {"predict", "serve", "triton", "push", "pull"}  # which answer in JSON anyway, or a line
    assert having == set(main.commands) - others


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "said"),
    [
        (["predict", "BUNDLE", "good"], ">&-", 0, ""),
        (["predict", "nowhere", "good"], ">&-", 2, "Error: nowhere: not a bundle"),
        (["predict", "BUNDLE", "-"], "<&-", 2, "Error: standard input is closed"),
    ],
)
def test_a_closed_stream_is_no_crash(made: Made, arguments: list[str], closed: str, code: int, said: str):
    words = shlex.join(str(made.bundle) if word == "BUNDLE" else word for word in arguments)
    program = f"{shlex.quote(str(Path(sys.executable).with_name('hadskip-export')))} {words} {closed}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.startswith(said)) == (code, True) and "Traceback" not in done.stderr


@pytest.mark.parametrize(("place", "said"), [("none/page.html", "make it first"), (".", "is a folder; name a file")])
def test_a_page_that_cannot_be_is_refused_before_the_work(made: Made, tmp_path: Path, place: str, said: str):
    for command in (["bench", made.bundle], ["inspect", made.run]):
        refused(run(*command, "--report", tmp_path / place), f"--report {tmp_path / place}", said)


def test_nothing_is_written_over_what_is_read(made: Made, tmp_path: Path):
    data, page = tmp_path / "data.csv", tmp_path / "page.html"
    data.write_text("text,label\ngood,positive\nbad,negative\n")
    before, manifest = data.read_bytes(), made.bundle / "manifest.json"
    for command in (
        ["bench", made.bundle, "--data", data, "--json", data],
        ["bench", made.bundle, "--data", data, "--report", data],
        ["validate", made.bundle, "--data", data, "--json", data],
        ["calibrate", made.bundle, "--data", data, "--json", tmp_path / "." / "data.csv"],
        ["score", made.bundle, data, "--out", tmp_path / "answers", "--json", data],
        ["inspect", made.bundle, "--json", manifest],
        ["predict", made.bundle, "good", "--output", manifest, "--force"],
    ):
        refused(run(*command), "is the input", "name another")
    refused(run("inspect", made.run, "--json", page, "--report", page), "too; name another")
    assert data.read_bytes() == before and not page.exists()
    for _ in range(2):  # the second time it is there
        succeeded(run("inspect", made.run, "--json", made.run / "figures.json"))
        succeeded(run("inspect", made.bundle, "--json", tmp_path / "new.json"))


def test_a_pipe_is_written_to_as_it_is(made: Made):
    words = [Path(sys.executable).with_name("hadskip-export"), "inspect", made.bundle, "--json", "/dev/stdout"]
    command = f"{shlex.join(map(str, words))} | cat"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert '"default_budget"' in done.stdout and done.stderr == ""


def test_a_column_of_no_file_is_refused(made: Made):
    for command in ("bench", "validate"):
        for column in ("--text-column", "--label-column"):
            refused(run(command, made.bundle, column, "x"), f"{column}: names a column of the file that --data gives")


def test_a_file_whose_name_is_no_text_is_told_with_escapes(made: Made, tmp_path: Path):
    name = os.fsdecode(b"f\xff.csv")
    (tmp_path / name).write_bytes(made.eval.read_bytes())
    printed = succeeded(run("validate", made.bundle, "--data", tmp_path / name, "--json", "-")).stdout
    assert json.loads(printed)["passed"]
    assert json.loads(to_json({"data": tmp_path / name}))["data"] == f"{tmp_path}/f\\udcff.csv"
    shutil.copytree(made.bundle, tmp_path / os.fsdecode(b"b\xff"))
    refused(run("predict", tmp_path / os.fsdecode(b"b\xff"), "good"), "name is not UTF-8")


def test_results_go_to_stdout_and_errors_to_stderr(made: Made):
    process = program("predict", made.bundle, "good")
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert equal(lines(stdout), expected(made, ["good"]))
    process = program("predict", made.run, "good")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, "")
    assert stderr.startswith("Error: ")
    assert len(stderr.splitlines()) == 1


@pytest.mark.slow
def test_code_in_the_current_folder_never_runs(made: Made, tmp_path: Path):
    """Beside files of these names, and with them in the bundle, every command answers as ever."""
    copy = copied(made, tmp_path)
    for name in ("numpy", "tokenizers", "onnxruntime", "statistics", "profile", "json", "torch", "msgspec", "click"):
        for folder in (tmp_path, copy):
            (folder / f"{name}.py").write_text("raise SystemExit('what was imported is not the library')")
    commands = (
        ["predict", copy, "good"],
        ["validate", copy, "--data", made.eval],
        ["bench", copy, "--data", made.eval, "--batch", 16],
        ["build", made.run, "--out", tmp_path / "another"],
        ["inspect", copy],
    )
    for command in commands:
        process = program(*command, cwd=tmp_path, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        _, stderr = process.communicate()
        assert process.returncode == 0, f"{command[0]}: {stderr}"


def test_a_reader_that_goes_away_is_no_traceback(made: Made, tmp_path: Path):
    process = program("predict", made.bundle, "--input", write_csv(tmp_path / "many.csv", sentences(6000, 5)))
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait()
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


def test_an_interrupted_training_says_so_and_can_go_on(made: Made, tmp_path: Path):
    out = tmp_path / "run"
    process = program(
        "train", "--model", made.model, "--budget", 2, "--train", made.train, "--eval", made.eval, "--out", out,
        "--set", "stage1_epochs=500",
    )  # fmt: skip
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "Error: interrupted"
    assert "Traceback" not in stdout + stderr
    assert not (out / "summary.json").exists()
    refused(run("build", out, "--out", tmp_path / "bundle"), str(out), "--resume")


# Bad input to train


def train(made: Made, out: Path, **changed: object) -> Result:
    """`train` as it works, but for the options in `changed` (None leaves one out)."""
    options = {"model": made.model, "budget": 2, "train": made.train, "eval": made.eval, "max_length": 32} | changed
    arguments = [
        a for name, value in options.items() if value is not None for a in (f"--{name.replace('_', '-')}", value)
    ]
    return run("train", "--out", out, *arguments)


def no_run(out: Path) -> bool:
    return not (out / "summary.json").exists() and not (out / "stage1").exists()


def file_of(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


DATA_FILES: dict[str, tuple[str, str | bytes | None, str]] = {
    "missing": ("data.csv", None, "no such file"),
    "no header": ("data.csv", "", "no rows"),
    "no rows": ("data.csv", "text,label\n", "no rows"),
    "empty jsonl": ("data.jsonl", "\n\n", "no rows"),
    "another type": ("data.xlsx", "PK", ".csv, .tsv or .jsonl"),
    "not UTF-8": ("data.csv", "text,label\ncafé,positive\n".encode("latin-1"), "UTF-8"),
    "open quote": ("data.csv", 'text,label\n"open,positive\n', "line"),
    "short row": ("data.csv", "text,label\na,positive\nb\n", "line 3"),
    "long row": ("data.csv", "text,label\na,positive,c\n", "line 2"),
    "unknown columns": ("data.csv", "words,answer\na,positive\n", "--text-column"),
    "no label column": ("data.csv", "text,answer\na,positive\n", "--label-column"),
    "not JSON": ("data.jsonl", '{"text": "a", "label": "positive"}\n{', "line 2"),
    "no object": ("data.jsonl", '["a", "positive"]\n', "line 1"),
    "missing field": ("data.jsonl", '{"text": "a", "label": "positive"}\n{"text": "b"}\n', "line 2"),
}


@pytest.mark.parametrize("option", ["train", "eval"])
@pytest.mark.parametrize("case", DATA_FILES)
def test_train_refuses_a_data_file(made: Made, tmp_path: Path, option: str, case: str):
    name, content, message = DATA_FILES[case]
    file = tmp_path / name if content is None else file_of(tmp_path, name, content)
    refused(train(made, tmp_path / "out", **{option: file}), str(file), message)
    assert not (tmp_path / "out").exists()


def test_train_refuses_labels_it_cannot_learn(made: Made, tmp_path: Path):
    out = tmp_path / "out"
    unknown = write_csv(tmp_path / "eval.csv", [("good", "positive"), ("so so", "mixed")])
    refused(train(made, out, eval=unknown), str(unknown), "line 3", "'mixed'", "negative, positive")
    one = write_csv(tmp_path / "one.csv", [("good", "positive")] * 5)
    refused(train(made, out, train=one), str(one), "'positive'", "two")
    assert not out.exists()


def test_train_refuses_labels_a_fine_tuned_model_does_not_know(made: Made, tmp_path: Path):
    other = write_csv(tmp_path / "other.csv", [("good", "yes"), ("bad", "no")] * 10)
    result = run(
        "train", "--model", made.run / "stage1", "--fine-tuned", "--budget", 2, "--train", other, "--eval", other,
        "--out", tmp_path / "out",
    )  # fmt: skip
    refused(result, str(other), "line 2", "'yes'", "negative, positive")
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = [
    ({"budget": 3.5}, ["--budget 3.5", "3 layers"]),
    ({"budget": 0}, ["--budget 0", "3 layers"]),
    ({"budget": -1}, ["--budget -1", "3 layers"]),
    ({"budget": "nan"}, ["--budget nan"]),
    ({"budget": "many"}, ["--budget", "'many'"]),
    ({"text_column": "words"}, ["'words'", "--text-column", "'text'"]),
    ({"label_column": "answer"}, ["'answer'", "--label-column", "'label'"]),
    ({"pair_column": "second"}, ["'second'", "--pair-column"]),
    ({"max_length": 7}, ["--max-length 7", "8 to 64"]),
    ({"max_length": 65}, ["--max-length 65", "8 to 64"]),
    ({"device": "abacus"}, ["--device abacus", "leave --device out"]),
    ({"set": "speed=9"}, ["speed"]),
    ({"set": "batch_size=many"}, ["batch_size"]),
    ({"set": "batch_size"}, ["batch_size"]),
    ({"recipe": "/no/such/recipe.toml"}, ["/no/such/recipe.toml"]),
    ({"recipe": "adaptiv"}, ["adaptiv", "paper, adaptive"]),
    ({"method": "magic"}, ["--method", "'magic'", "'hadskip', 'joint', 'nested', 'upfront', 'budgeted', 'static'"]),
    ({"route": "1,2"}, ["--route", "static"]),
    ({"method": "static", "route": "x"}, ["--route x", "1,2,6"]),
    ({"method": "static", "route": "1,,2"}, ["--route 1,,2", "1,2,6"]),
    ({"method": "static", "route": "1;2"}, ["--route 1;2", "1,2,6"]),
    ({"method": "static", "route": ""}, ["--route", "1,2,6"]),
    ({"method": "static", "route": "1,4"}, ["--route 1,4", "1 to 3"]),
    ({"method": "static", "route": "2,1"}, ["--route 2,1", "1 to 3"]),
    ({"method": "static", "route": "1"}, ["--route 1", "2 of the layers"]),
    ({"method": "budgeted", "budget": 1.5}, ["--budget 1.5", "budgeted"]),
    ({"task": "sst2"}, ["--task", "--train"]),
    ({"task": "sst9", "train": None, "eval": None}, ["--task", "'sst9'", "'sst2'"]),
    ({"task": "sst2", "train": None, "eval": None}, ["--data-dir"]),
    ({"task": "sst2", "data_dir": "/no/such", "train": None, "eval": None}, ["/no/such"]),
    ({"train": None, "eval": None}, ["--task", "--train"]),
    ({"eval": None}, ["--eval"]),
    ({"model": "/no/such/model"}, ["/no/such/model", "no such folder"]),
]


@pytest.mark.parametrize(
    ("changed", "parts"), BAD_OPTIONS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_train_refuses_an_option(made: Made, tmp_path: Path, changed: dict, parts: list[str]):
    refused(train(made, tmp_path / "out", **changed), *parts)
    assert not (tmp_path / "out").exists()


def other_model(made: Made, folder: Path, **config: object) -> Path:
    copy = Path(shutil.copytree(made.model, folder / "model"))
    plain = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(plain | config))
    return copy


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported"),
        ({"model_type": "no-such-architecture"}, "no-such-architecture"),
        ({"hidden_act": "mish"}, "'mish' is not supported"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"is_decoder": True}, "decoder"),
    ],
    ids=str,
)
def test_train_refuses_an_architecture(made: Made, tmp_path: Path, config: dict, message: str):
    model = other_model(made, tmp_path, **config)
    refused(train(made, tmp_path / "out", model=model), str(model), message)
    assert no_run(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: (model / "config.json").unlink(), "config.json"),
        (lambda model: (model / "config.json").write_text("{"), "config.json"),
        (lambda model: (model / "model.safetensors").unlink(), "model.safetensors"),
        (lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"), "pickled"),
        (lambda model: os.truncate(model / "model.safetensors", 5000), "model.safetensors"),
        (
            lambda model: [file.unlink() for file in model.iterdir() if "token" in file.name or "vocab" in file.name],
            "tokenizer",
        ),
    ],
    ids=["no config", "broken config", "no weights", "pickled weights", "truncated weights", "no tokenizer"],
)
def test_train_refuses_a_damaged_model(made: Made, tmp_path: Path, damage: Callable[[Path], object], message: str):
    model = other_model(made, tmp_path)
    damage(model)
    refused(train(made, tmp_path / "out", model=model), str(model), message)
    assert no_run(tmp_path / "out")


def test_train_refuses_a_folder_that_is_not_empty(made: Made, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    file_of(out, "mine", "mine")
    refused(train(made, out), str(out), "not empty", "--out")
    assert [file.name for file in out.iterdir()] == ["mine"]
    refused(train(made, out / "mine"), "mine", "--out")
    assert (out / "mine").read_text() == "mine"


# Bad input to the other commands


def test_build_refuses(made: Made, tmp_path: Path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused(run("build", tmp_path / "missing", "--out", out), "missing", "not a run folder")
    refused(run("build", tmp_path / "empty", "--out", out), "empty", "not a run folder")
    refused(run("build", made.bundle, "--out", out), str(made.bundle), "bundle")
    refused(run("build", made.run, "--out", out, "--budget", 2.5), "--budget 2.5", "3, 2")
    refused(run("build", made.run, "--out", out, "--budget", 4), "--budget 4", "3 layers")
    refused(run("build", made.run, "--out", out, "--budget", 0), "--budget 0", "3 layers")
    refused(run("build", made.run, "--out", out, "--engine", "abacus"), "--engine", "'abacus'", "'ort'")
    refused(run("build", made.run, "--out", out, "--precision", "int7"), "--precision", "'int7'", "'fp32'")
    refused(run("build", made.run, "--out", out, "--precision", "fp16"), "--precision fp16", "there are fp32, int8")
    refused(run("build", made.run, "--out", out, "--golden", tmp_path / "none.txt"), "--golden", "none.txt")
    refused(run("build", made.run, "--out", out, "--cut", "sideways"), "sideways")
    refused(run("build", made.run), "--out")
    refused(run("build", made.run, "--out", made.bundle), str(made.bundle), "exists already")
    assert os.listdir(tmp_path) == ["empty"]


def copied(made: Made, folder: Path) -> Path:
    return Path(shutil.copytree(made.bundle, folder / "copy"))


def replace(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))


def list_a_path_that_leaves(bundle: Path) -> None:
    change_manifest(bundle, lambda plain: plain["files"].update({"../x": plain["files"]["golden/inputs.jsonl"]}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json"),
    "edited manifest": (lambda b: replace(b / "manifest.json", b"passed", b"Passed"), "manifest.json"),
    "newer format": (lambda b: change_manifest(b, lambda plain: plain.update(format=3)), "format 3"),
    "older format": (lambda b: change_manifest(b, lambda plain: plain.update(format=1)), "build RUN --out BUNDLE"),
    "missing piece": (lambda b: (b / "model/layer_02.onnx").unlink(), "layer_02.onnx"),
    "truncated piece": (lambda b: os.truncate(b / "model/layer_02.onnx", 1000), "layer_02.onnx"),
    "edited tokenizer": (lambda b: replace(b / "model/tokenizer.json", b"good", b"gOOd"), "tokenizer.json"),
    "a path that leaves": (list_a_path_that_leaves, "../x"),
}
COMMANDS = {"validate": [], "predict": ["good"], "inspect": [], "bench": []}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_is_refused(made: Made, tmp_path: Path, damage: str, command: str):
    copy = copied(made, tmp_path)
    DAMAGE[damage][0](copy)
    refused(run(command, copy, *COMMANDS[command]), str(copy), DAMAGE[damage][1])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_bundle_is_refused(made: Made, tmp_path: Path, command: str):
    for path in (tmp_path, tmp_path / "missing", made.eval):
        refused(run(command, path, *COMMANDS[command]), str(path), "not a bundle")


@pytest.mark.parametrize("command", ["validate", "predict", "bench"])
def test_an_engine_the_bundle_lacks_is_refused(made: Made, command: str):
    refused(run(command, made.bundle, *COMMANDS[command], "--engine", "trt"), "'trt'", "ort-fp32")


@pytest.mark.parametrize("command", ["validate", "bench"])
@pytest.mark.parametrize("case", DATA_FILES)
def test_labelled_data_that_cannot_be_used_is_refused(made: Made, tmp_path: Path, case: str, command: str):
    name, content, message = DATA_FILES[case]
    file = tmp_path / name if content is None else file_of(tmp_path, name, content)
    refused(run(command, made.bundle, "--data", file), str(file), message)


@pytest.mark.parametrize("command", ["validate", "bench"])
def test_labels_the_model_does_not_know_are_refused(made: Made, tmp_path: Path, command: str):
    file = write_csv(tmp_path / "data.csv", [("good", "positive"), ("bad", "yes")])
    refused(run(command, made.bundle, "--data", file), str(file), "line 3", "'yes'", "negative, positive")
    refused(run(command, made.bundle, "--data", file, "--text-column", "words"), "'words'", "--text-column")


def test_bench_refuses(made: Made, tmp_path: Path):
    file = tmp_path / "bench.json"
    refused(run("bench", made.bundle, "--batch", 0, "--json", file), "--batch")
    assert not file.exists()


def test_bench_finds_out_that_it_cannot_write_before_it_measures(made: Made, tmp_path: Path):
    result = run("bench", made.bundle, "--data", made.eval, "--json", tmp_path / "missing" / "bench.json")
    refused(result, "missing")
    assert "done in" not in result.stderr
    result = run("bench", made.bundle, "--data", made.eval, "--json", tmp_path)
    refused(result, "is a folder; name a file")
    assert "done in" not in result.stderr


def test_predict_refuses(made: Made, tmp_path: Path):
    refused(run("predict", made.bundle), "--input")
    refused(run("predict", made.bundle, "a", "b", "--pair", "c"), "--pair")
    refused(run("predict", made.bundle, "--pair", "c", "--input", made.eval), "--pair")
    refused(run("predict", made.bundle, "good", "--max-layers", 0), "max_layers", "1 to 3")
    refused(run("predict", made.bundle, "good", "--max-layers", 4), "max_layers", "1 to 3")
    refused(run("predict", made.bundle, "good", "--gate-threshold", "high"), "--gate-threshold", "'high'")
    refused(run("predict", made.bundle, "good", "--router", "dice"), "--router", "dice")
    both = run("predict", made.bundle, "good", "--budget", 2, "--gate-threshold", 0.5)
    refused(both, "budget=2", "gate_threshold=0.5", "each sets the thresholds; leave one out")
    refused(run("predict", made.bundle, "good", "--budget", 2.5), "budget 2.5", "points for 2", "calibrate")
    refused(run("predict", made.bundle, "good", "--budget", 4), "--budget 4", "3 layers")
    for option in ("--max-layers", "--gate-threshold", "--budget"):
        refused(run("predict", made.bundle, "good", "--router", "full", option, 2), option, "--router full runs every")
    options = ("--out", "nowhere", "--router", "full", "--budget", 2)
    refused(run("score", made.bundle, made.eval, *options), "--budget", "--router full runs every")


def test_predict_refuses_bytes_that_are_no_text(made: Made):
    """What Python makes of a command line that is not UTF-8."""
    refused(run("predict", made.bundle, os.fsdecode(b"caf\xe9")), "Unicode")


def test_predict_says_when_the_bundle_has_no_full_model(made: Made, tmp_path: Path):
    copy = copied(made, tmp_path)
    change_manifest(copy, lambda plain: plain["engines"][0]["files"].pop("full"))
    refused(run("predict", copy, "good", "--router", "full"), str(copy), "--no-full")
    refused(run("bench", copy), str(copy), "--no-full")


LATE = {
    "short row": ("data.csv", "text,label\n" + "good,positive\n" * 3000 + "alone\n", "line 3002"),
    "open quote": ("data.csv", "text,label\n" + "good,positive\n" * 3000 + '"open\n', "line"),
    "not JSON": ("data.jsonl", '{"text": "good"}\n' * 3000 + "{\n", "line 3001"),
    "missing field": ("data.jsonl", '{"text": "good"}\n' * 3000 + '{"words": "bad"}\n', "line 3001"),
    "not UTF-8": ("data.csv", b"text\n" + b"good\n" * 3000 + b"\xff\n", "line 3002: not UTF-8"),
    "not Unicode": ("data.jsonl", '{"text": "good"}\n' * 3000 + '{"text": "\\ud800"}\n', "Unicode"),
}


@pytest.mark.parametrize("before", [None, "an older answer"])
@pytest.mark.parametrize("case", LATE)
def test_predict_writes_the_whole_file_or_nothing(made: Made, tmp_path: Path, case: str, before: str | None):
    """The fault comes after thousands of good rows, which are written by then."""
    name, content, message = LATE[case]
    file, output = file_of(tmp_path, name, content), tmp_path / "answers.jsonl"
    if before is not None:
        output.write_text(before)
    force = () if before is None else ("--force",)
    refused(run("predict", made.bundle, "--input", file, "--output", output, *force), message)
    assert (output.read_text() if output.exists() else None) == before
    assert {path.name for path in tmp_path.iterdir()} == {name} | ({"answers.jsonl"} if before else set())


def test_predict_says_when_it_cannot_read_or_write(made: Made, tmp_path: Path):
    refused(run("predict", made.bundle, "--input", tmp_path / "none.csv"), "none.csv", "no such file")
    refused(run("predict", made.bundle, "--input", made.eval, "--text-column", "words"), "'words'", "--text-column")
    refused(run("predict", made.bundle, "good", "--output", tmp_path / "missing" / "answers.jsonl"), "missing")
    (tmp_path / "folder").mkdir()
    refused(run("predict", made.bundle, "good", "--output", tmp_path / "folder"), "folder")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("case", ["no header", "no rows", "empty jsonl"])
def test_predict_refuses_an_empty_file(made: Made, tmp_path: Path, case: str):
    name, content, message = DATA_FILES[case]
    file, output = file_of(tmp_path, name, content), tmp_path / "answers.jsonl"
    refused(run("predict", made.bundle, "--input", file, "--output", output), str(file), message)
    assert not output.exists()


# Engines


@pytest.fixture(scope="module")
def several(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with engines that differ in one thing or another."""
    copy = copied(made, tmp_path_factory.mktemp("several"))
    for engine in (("ort", "fp32", "whole"), ("ort", "int8", "layers"), ("openvino", "fp32", "whole")):
        options = zip(("--engine", "--precision", "--cut"), engine, strict=True)
        run("build", copy, *(part for option in options for part in option))
    return copy


CHOICES = [
    ([], "ort-fp32-gates"),
    (["--cut", "whole"], "ort-fp32-whole"),
    (["--cut", "layers"], "ort-int8-layers"),
    (["--precision", "int8"], "ort-int8-layers"),
    (["--engine", "openvino"], "openvino-fp32-whole"),
    (["--engine", "ort", "--cut", "whole"], "ort-fp32-whole"),
    (["--engine", "openvino-fp32", "--cut", "whole", "--precision", "fp32"], "openvino-fp32-whole"),
    (["--engine", "ort-int8-layers"], "ort-int8-layers"),
]


@pytest.mark.parametrize(
    ("options", "name"), CHOICES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_engine_precision_and_cut_choose_the_engine(several: Path, tmp_path: Path, monkeypatch, options, name: str):
    used: list[str] = []
    load = Predictor.__init__

    def noting(predictor: Predictor, *arguments, **given) -> None:
        load(predictor, *arguments, **given)
        used.append(predictor.engine_info.name)

    monkeypatch.setattr(Predictor, "__init__", noting)
    assert lines(succeeded(run("predict", several, "good", *options)).stdout)[0]["label"]
    data = write_csv(tmp_path / "texts.csv", [("good",), ("bad film",)], ("text",))
    found = json.loads(succeeded(run("calibrate", several, "--data", data, "--json", "-", *options)).stdout)
    assert found["engine"] == name
    found = json.loads(run("validate", several, "--json", "-", *options).stdout)["parity"]
    assert f"{found['engine']}-{found['precision']}-{found['cut']}" == name
    assert used == [name] * 3


@pytest.mark.parametrize(
    "options", [["--engine", "ort", "--cut", "layers", "--precision", "fp32"], ["--engine", "trt"]]
)
@pytest.mark.parametrize("command", ["predict", "validate", "bench", "calibrate"])
def test_engines_that_are_not_there_are_refused_and_those_that_are_are_named(
    made: Made, several: Path, command: str, options: list[str]
):
    others = {"predict": ["good"], "calibrate": ["--data", made.eval]}.get(command, [])
    refused(run(command, several, *others, *options), "has no engine", "ort-fp32-gates, ort-fp32-whole", "build")


CUTTING = {"build": ["x"], "predict": ["x", "good"], "validate": ["x"], "calibrate": ["x", "--data", "y"],
           "bench": ["x"], "serve": ["x"], "score": ["x", "y", "--out", "z"], "triton": ["x", "--out", "z"],
           "estimate": ["--model", "minilm", "--layers-run", 3]}  # fmt: skip


def test_every_command_that_has_to_do_with_engines_knows_the_cuts():
    assert {name for name, command in main.commands.items() if any(p.name == "cut" for p in command.params)} == {
        *CUTTING
    }


@pytest.mark.parametrize("word", ["lookahead", "Gates", "gates,layers", "graph", ""])
@pytest.mark.parametrize("command", CUTTING)
def test_a_cut_is_one_of_three_words(command: str, word: str):
    refused(run(command, *CUTTING[command], "--cut", word), "--cut", "'gates', 'layers', 'whole'")


# The commands themselves


def test_help_has_no_word_of_what_there_is_no_more():
    """One axis says how finely a model is cut; guesses and layouts are gone."""
    pages = {(): succeeded(run("--help")).stdout}
    pages |= {(name,): succeeded(run(name, "--help")).stdout for name in main.commands}
    assert len(pages) == len(main.commands) + 1 > 10
    for name, page in pages.items():
        words = set(re.findall(r"--[a-z-]+|[a-z]+", page.lower()))
        gone = {"lookahead", "guess", "guessing", "speculation", "layout", "fused", "--single", "--graph", "--gates"}
        assert not words & gone, name
        assert "lookahead" not in page and "guess" not in page
    for name, command in main.commands.items():
        flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        assert not flags & {"--lookahead", "--guess", "--single", "--graph", "--gates", "--batches"}, name


def test_every_command_explains_itself():
    for name, command in main.commands.items():
        assert command.help
        for flag in ("-h", "--help"):
            assert succeeded(run(name, flag)).stdout.startswith(f"Usage: main {name}")
    assert set(main.commands) <= set(succeeded(run("--help")).stdout.split())
    assert succeeded(run("--version")).stdout.strip() == f"hadskip-export, version {hadskip_export.__version__}"


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [([], ["-v"], "INFO"), (["-v"], [], "INFO"), (["-v"], ["-v"], "DEBUG"), ([], ["-vv"], "DEBUG"), ([], [], None)],
    ids=str,
)
def test_what_is_logged_may_be_asked_for_before_and_after_the_command(made: Made, before, after, level: str | None):
    process = program(*before, "predict", made.bundle, "good", *after)
    stdout, stderr = process.communicate()
    assert process.returncode == 0 and lines(stdout)
    assert ("ort-fp32-gates loaded in" in stderr) == (level is not None)
    assert len(stderr.splitlines()) == (level is not None)  # once, whatever was asked for twice
    logger = logging.getLogger("hadskip_export")
    CliRunner().invoke(main, [*before, "predict", str(made.bundle), "good", *after])
    assert level is None or logging.getLevelName(logger.level) == level
    assert all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)  # none is left behind


CLOSED = {
    ("build", "engine"): ENGINES, ("build", "precision"): PRECISIONS, ("build", "cut"): get_args(Cut),
    ("estimate", "engine"): ENGINES, ("estimate", "precision"): PRECISIONS, ("estimate", "cut"): get_args(Cut),
    ("train", "task"): GLUE_TASKS, ("train", "method"): (HADSKIP, *METHODS),
    **{(command, "precision"): PRECISIONS for command in ("predict", "validate", "calibrate", "bench")},
}  # fmt: skip


@pytest.mark.parametrize(("command", "option"), CLOSED, ids=str)
def test_a_closed_set_is_listed_and_completed(command: str, option: str):
    """By `--help`, and by the shell."""
    words = set(CLOSED[command, option])
    page = " ".join(succeeded(run(command, "--help")).stdout.split()).replace("| ", "|").replace(" |", "|")
    listed = re.search(rf"--{option} \[([^]]*)\]", page)
    assert listed and set(listed[1].split("|")) == words
    assert completed(command, f"--{option}", "") == words
    first = min(words)
    assert first in completed(command, f"--{option}", first[:2]) <= words


def completed(command: str, *words: str) -> set[str]:
    """What a shell is offered for the last of the words."""
    *before, last = words
    shell = ShellComplete(main, {}, "hadskip-export", "_HADSKIP_EXPORT_COMPLETE")
    return {item.value for item in shell.get_completions([command, *before], last)}


@pytest.mark.parametrize("command", ["predict", "validate", "calibrate", "bench"])
def test_a_shell_completes_the_engines_that_the_bundle_has(several: Path, command: str):
    names = {"ort-fp32-gates", "ort-fp32-whole", "ort-int8-layers", "openvino-fp32-whole"}
    assert completed(command, str(several), "--engine", "") == names
    assert completed(command, str(several), "--engine", "ort-int") == {"ort-int8-layers"}
    assert completed(command, "--engine", "") == completed(command, "/missing", "--engine", "") == set(ENGINES)


def test_an_unknown_command_or_option_is_a_usage_error(made: Made):
    refused(run("fly"), "fly")
    refused(run("inspect", made.bundle, "--fly"), "--fly")
    refused(run("inspect"), "PATH")


def test_every_command_is_a_function_with_the_same_arguments():
    assert set(main.commands) == set(hadskip_export.__all__) - {"__version__"}
    renamed = {"train_file": "train", "eval_file": "eval", "no_full": "full", "no_timing": "timing"}
    only_here = {"json_file", "verbose"}  # where to, and what is logged on the way
    for name, command in main.commands.items():
        options = {renamed.get(p.name, p.name) for p in command.params if isinstance(p, click.Parameter)} - only_here
        function = signatures.signature(getattr(hadskip_export, name)).parameters
        if "options" in function:  # predict hands the rest to `Predictor.load`
            loading = signatures.signature(Predictor.load).parameters
            assert options - {"pair"} <= set(function) | set(loading)
        else:
            assert options == set(function)


# Standard output, whatever it is


@pytest.mark.parametrize(("encoding", "read_as"), [("cp1252", "cp1252"), ("latin-1", "latin-1"), ("ascii", "utf-8")])
def test_labels_that_an_encoding_lacks_are_written_as_json_has_them(encoding: str, read_as: str):
    """click takes ASCII for a mistake and writes UTF-8 instead."""
    said = "ポジティブ é 😀"
    code = f"""
import click, json
from hadskip_export.cli import main
@main.command()
def said():
    click.echo(json.dumps({said!a}, ensure_ascii=False))
main(["said"])
"""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0 and json.loads(done.stdout.decode(read_as)) == said, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_an_output_without_room_is_one_line(made: Made):
    code = "from hadskip_export.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "inspect", made.run], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == (
        "Error: standard output: No space left on device; make room there, then run the command again\n"
    )


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_that_is_none_is_refused_before_anything_is_written(made: Made, tmp_path: Path, seed: int):
    result = run(
        "train", "--model", made.model, "--budget", 1, "--train", made.train, "--eval", made.eval, "--out",
        tmp_path / "run", "--seed", seed,
    )  # fmt: skip
    refused(result, f"--seed {seed}", "expected 0 to")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_pytorchs_threads_wait_for_each_other_only_briefly(given: str | None, expected: str):
    """As its OpenMP, where that is GNU's, says when it is loaded; what the user has set stays."""
    code = """
import sys
from hadskip_export.cli import main
try:
    main(["predict", "nothing-here", "a text"])
except SystemExit:
    import torch
"""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({} if given is None else {"GOMP_SPINCOUNT": given})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("another OpenMP")
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr


@pytest.mark.parametrize(
    ("reason", "said", "code"),
    [(KeyboardInterrupt(), "interrupted", 130), (Ended(signal.SIGTERM), "terminated", 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_amid_an_import_is_no_missing_library(monkeypatch, reason: BaseException, said: str, code: int):
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise EngineError("onnxruntime cannot be imported") from reason

    monkeypatch.setattr(hadskip_export, "inspect", interrupted)
    result = CliRunner().invoke(main, ["inspect", "somewhere"])
    assert (result.exit_code, result.stderr) == (code, f"Error: {said}\n")
