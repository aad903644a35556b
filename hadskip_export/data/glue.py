"""The seven GLUE tasks of the paper's table 5, read from GLUE's own files or from the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hadskip_export.data.examples import Examples
from hadskip_export.data.rows import NO_ROWS, NoRowsError
from hadskip_export.data.text import Text
from hadskip_export.support.errors import DataError, optional_import
from hadskip_export.support.progress import say

HUB_REPOSITORY = "nyu-mll/glue"
BROKEN_SHARE = 0.01

# A file, or a split on the hub, and its examples.
Part = tuple[Path, Examples]


@dataclass(frozen=True)
class GlueTask:
    """A task: its metric (table 5), its labels in class order, and where its files have what.

    `header` names the columns of files that do not name them. `files` and `splits`: what is trained on, what is
    evaluated on and, for MNLI, the mismatched genres; `original` are the names of those files outside GLUE.
    """

    folder: str
    metric: str
    text: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    header: tuple[str, ...] = ()
    files: tuple[str, ...] = ("train.tsv", "dev.tsv")
    original: tuple[str, ...] = ()
    hub_text: tuple[str, ...] = ()  # where the hub's names are others than `text`
    splits: tuple[str, ...] = ("train", "validation")


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS = {
    "sst2": GlueTask("SST-2", "accuracy", ("sentence",)),
    "rte": GlueTask("RTE", "accuracy", SENTENCES, labels=ENTAILMENT),
    "cola": GlueTask("CoLA", "matthews", ("sentence",), header=("source", "label", "star", "sentence")),
    "mrpc": GlueTask(
        "MRPC",
        "f1",
        ("#1 String", "#2 String"),
        "Quality",
        original=("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
        hub_text=SENTENCES,
    ),
    "qnli": GlueTask("QNLI", "accuracy", ("question", "sentence"), labels=ENTAILMENT),
    "qqp": GlueTask("QQP", "f1", ("question1", "question2"), "is_duplicate"),
    "mnli": GlueTask(
        "MNLI",
        "accuracy",
        SENTENCES,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        files=("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"),
        hub_text=("premise", "hypothesis"),
        splits=("train", "validation_matched", "validation_mismatched"),
    ),
}


def read_folder(name: str, data_dir: Path) -> list[Part]:
    """A task's files, in the order of `GlueTask.files`, from its folder or from GLUE's root.

    Raises:
        DataError: a file is missing, not UTF-8, has no such column or an unknown label, or more than 1 % of its rows
            are broken (fewer are left out: QQP's own files have some).
    """
    task = GLUE_TASKS[name]
    folder = data_dir / task.folder if (data_dir / task.folder).is_dir() else data_dir
    files = task.files
    if not (folder / files[0]).exists() and any((folder / file).exists() for file in task.original):
        files = task.original
    return [(folder / file, _read_file(folder / file, task)) for file in files]


def _read_file(file: Path, task: GlueTask) -> Examples:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            return _read_rows(file, lines, task)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; --data-dir is the folder with {', '.join(task.files)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error.reason}); convert it first") from error
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _read_rows(file: Path, lines: TextIO, task: GlueTask) -> Examples:
    header = task.header or tuple(next(lines, "").rstrip("\n").split("\t"))
    for column in (*task.text, task.label):
        if column not in header:
            raise DataError(f"{file}: no column {column!r}, which the files of GLUE's {task.folder} have")
    places = [header.index(column) for column in task.text]
    label_place = header.index(task.label)
    labels: list[str] = []
    found, broken = Examples([], labels), []
    for number, line in enumerate(lines, start=1 if task.header else 2):
        if line == "\n":
            continue
        fields = line.rstrip("\n").split("\t")
        if len(fields) != len(header):
            broken.append(f"line {number}: expected {len(header)} columns, found {len(fields)}")
            continue
        label = fields[label_place]
        if label not in task.labels:
            known = ", ".join(task.labels)
            raise DataError(f"{file}, line {number}: label {label!r} is not known; {task.folder} has {known}")
        found.texts.append(_text([fields[place] for place in places]))
        labels.append(label)
        found.lines.append(number)
    if len(broken) > BROKEN_SHARE * (len(found) + len(broken)):
        raise DataError(f"{file}, {broken[0]}")
    if broken:
        say(f"{file}: {len(broken)} of {len(found) + len(broken)} rows left out, the first in {broken[0]}")
    if not len(found):
        raise NoRowsError(f"{file}: {NO_ROWS}")
    return found


def read_hub(name: str, repository: str = HUB_REPOSITORY) -> list[Part]:
    """A task's splits, in the order of `GlueTask.splits`, with labels named as in GLUE's files.

    Raises:
        DataError: `datasets` is not installed, or does not get the task from `repository`.
    """
    task = GLUE_TASKS[name]
    try:
        datasets = optional_import("datasets", "hub")
        splits = datasets.load_dataset(repository, name, split=list(task.splits))
    except Exception as error:  # the hub client raises whatever its transport does
        raise DataError(
            f"--task {name}: cannot get {repository} from the hub ({error}); give the folder with"
            f" {', '.join(task.files)} with --data-dir"
        ) from error
    named = zip(task.splits, splits, strict=True)
    return [(Path(repository, name, split), _read_split(rows, task)) for split, rows in named]


def _read_split(rows: Any, task: GlueTask) -> Examples:
    names = rows.features["label"].names
    names = [name if name in task.labels else str(index) for index, name in enumerate(names)]
    text = task.hub_text or task.text
    columns = rows.select_columns([*text, "label"])[:]
    labelled = [row for row, label in enumerate(columns["label"]) if label >= 0]  # -1: not labelled
    return Examples(
        [_text([columns[column][row] for column in text]) for row in labelled],
        [names[columns["label"][row]] for row in labelled],
    )


def _text(fields: Sequence[str]) -> Text:
    return fields[0] if len(fields) == 1 else (fields[0], fields[1])
