"""What is done to commands until they break: `make chaos`, with MOMENTS, SIZES and MINUTES for more of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hadskip_export.runtime import Predictor, read_bundle
from tests.conftest import QUICK, sentences, write_csv

MOMENTS = int(os.environ.get("MOMENTS", "24"))
MINUTES = float(os.environ.get("MINUTES", "0.5"))
SIZES = int(os.environ.get("SIZES", "12"))
MAIN = "from hadskip_export.cli import main; main()"
JOBS = ("train", "build", "openvino", "int8", "predict")
CHECKPOINT_EVERY_STEP = """
from hadskip_export.trainers import checkpoints
checkpoints.SECONDS_BETWEEN, checkpoints.SHARE = 0.0, float("inf")
"""
TEXTS = [text for text, _ in sentences(60, 5)]


def start(*arguments: object, before: str = "") -> subprocess.Popen:
    """The command line in a process of its own; `before`: Python that it runs first."""
    command = [sys.executable, "-c", f"{before}\n{MAIN}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def answers(bundle: Path, engine: str | None = None) -> list:
    with Predictor.load(bundle, engine=engine, threads=1) as predictor:
        return predictor(TEXTS)


@dataclass(frozen=True)
class Job:
    """A command that writes.

    Args:
        arguments: it, given a folder to work in.
        target: what it makes there.
        check: looks at the finished target.
        finished: whether the target is there, so that the next command would begin something new.
        prepare: puts into the folder what the command changes.
        before: Python that a command which is to be killed runs first.
    """

    name: str
    arguments: Callable[[Path], list[object]]
    target: str
    check: Callable[[Path], None]
    finished: Callable[[Path], bool]
    prepare: Callable[[Path], None] = field(default=lambda _: None)
    before: str = ""


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """By name: train, build, openvino and int8, which add an engine, or predict."""
    return getattr(_Jobs(request, tmp_path_factory.mktemp("job")), request.param)()


@dataclass(frozen=True)
class _Jobs:
    """`bring`: gives what the other fixtures make; `folder`: for files that several runs read."""

    bring: pytest.FixtureRequest
    folder: Path

    def train(self) -> Job:
        run, (train, evaluation) = self.bring.getfixturevalue("run_folder"), self.bring.getfixturevalue("csv_files")
        command = [
            "train", "--model", self.bring.getfixturevalue("model_folder"), "--budget", 1.5, "--train", train,
            "--eval", evaluation, "--recipe", "paper", "--max-length", 32, "--resume",
            *(part for one in QUICK for part in ("--set", one)),
        ]  # fmt: skip

        def check(target: Path) -> None:
            weights = "budgets/1.5/model.safetensors"
            assert (target / weights).read_bytes() == (run / weights).read_bytes()

        return Job(
            "train", lambda folder: [*command, "--out", folder / "run"], "run", check, lambda _: False,
            before=CHECKPOINT_EVERY_STEP,
        )  # fmt: skip

    def build(self) -> Job:
        run = self.bring.getfixturevalue("run_folder")

        def check(target: Path) -> None:
            assert len(answers(target)) == len(TEXTS)  # loading it checks every digest
            only_what_is_named(target)

        return Job(
            "build", lambda folder: ["build", run, "--out", folder / "bundle", "--cut", "gates"], "bundle", check,
            Path.exists,
        )  # fmt: skip

    def openvino(self) -> Job:
        return self._adding("openvino", ["--engine", "openvino"])

    def int8(self) -> Job:
        return self._adding("ort-int8", ["--engine", "ort", "--precision", "int8"])

    def _adding(self, engine: str, options: list[object]) -> Job:
        bundle = self.bring.getfixturevalue("bundle")
        expected = answers(bundle)

        def check(target: Path) -> None:
            assert len(answers(target, engine)) == len(TEXTS) and answers(target, "ort-fp32") == expected
            only_what_is_named(target)

        def finished(target: Path) -> bool:
            return len(read_bundle(target).manifest.engines) == 2

        def prepare(folder: Path) -> None:
            shutil.copytree(bundle, folder / "bundle")

        return Job(engine, lambda folder: ["build", folder / "bundle", *options], "bundle", check, finished, prepare)

    def predict(self) -> Job:
        bundle, copies = self.bring.getfixturevalue("bundle"), 40
        rows = write_csv(self.folder / "rows.csv", [(text,) for text in TEXTS * copies], header=("text",))
        labels = [prediction.label for prediction in answers(bundle)] * copies

        def check(target: Path) -> None:
            assert [json.loads(line)["label"] for line in target.read_text().splitlines()] == labels

        return Job(
            "predict", lambda folder: ["predict", bundle, "--input", rows, "--output", folder / "out.jsonl"],
            "out.jsonl", check, Path.exists,
        )  # fmt: skip


def leftovers(folder: Path) -> list[str]:
    """Half-written files, journals, temporary files, anywhere below."""
    return [file.name for file in folder.rglob("*") if file.suffix == ".part" or file.name == ".adding"]


def only_what_is_named(bundle: Path) -> None:
    """A bundle has no file that its manifest does not know."""
    own = {"manifest.json", "manifest.sha256", ".lock"}
    files = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
    assert files - own == set(read_bundle(bundle).manifest.files)
