"""Where a task's examples come from and what is measured on them; the held-out slice."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.data.glue import GLUE_TASKS, HUB_REPOSITORY, read_folder, read_hub
from hadskip_export.data.metrics import AGREEMENT
from hadskip_export.data.tables import ANY_COLUMNS, PACKED, Columns, Examples, check_labels, read_examples
from hadskip_export.support.errors import DataError

UNLABELLED = -100  # in place of a class index; the one that torch's losses leave out
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 2000


@dataclass(frozen=True)
class TaskData:
    """Texts of a task; what a fine-tuned model is its own teacher of may lack labels.

    Args:
        metric: what is measured on the evaluation texts; `AGREEMENT` where they have no labels.
        labels: class names, index = class.
        evaluated_on: the name of the evaluation texts, as a person reads it.
        mismatched: MNLI's second evaluation.
    """

    name: str
    metric: str
    labels: tuple[str, ...]
    train: Examples
    evaluated_on: str
    evaluation: Examples
    mismatched: Examples | None = None

    def indices(self, examples: Examples) -> np.ndarray:
        """Class of each example, int64 [n]; `UNLABELLED` where they have no labels."""
        if not examples.labels:
            return np.full(len(examples), UNLABELLED, np.int64)
        index = {label: i for i, label in enumerate(self.labels)}
        return np.array([index[label] for label in examples.labels], np.int64)

    def digest(self) -> str:
        """SHA-256 of all texts and labels in their order, which decides what is held out."""
        parts = [(part.texts, part.labels) for part in (self.train, self.evaluation, self.mismatched) if part]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_task(
    *,
    task: str | None = None,
    data_dir: str | None = None,
    train: str | None = None,
    evaluation: str | None = None,
    columns: Columns = ANY_COLUMNS,
    known_labels: tuple[str, ...] | None = None,
    repository: str = HUB_REPOSITORY,
) -> TaskData:
    """Reads a GLUE task, from a folder or the hub, or any pair of labelled files.

    Args:
        known_labels: class names of a fine-tuned model; left out, they are the task's, or those of the training file.
            Of a fine-tuned model either file may be without labels.
        repository: where on the hub GLUE is, or a folder laid out like it.

    Raises:
        DataError: see `read_folder`, `read_hub`, `read_examples`; also an unknown task, what goes with the other of
            `task` and `train`, a label that training (or the model) does not know, or classes in an order that the
            metric cannot have.
    """
    if (task is None) == (train is None):
        raise DataError("give either --task, or --train with --eval")
    alien = {"--data-dir": data_dir} if task is None else {"--eval": evaluation, **_named(columns)}
    if option := next((option for option, given in alien.items() if given is not None), None):
        mine, other = ("--train", "--task") if task is None else ("--task", "--train")
        raise DataError(f"{option}: goes with {other}, not with {mine}; leave it out")
    if task is not None:
        if task not in GLUE_TASKS:
            raise DataError(f"--task {task}: not known; there are {', '.join(GLUE_TASKS)} (or use --train and --eval)")
        name, metric = task, GLUE_TASKS[task].metric
        known_labels = known_labels or GLUE_TASKS[task].labels
        parts = read_hub(task, repository) if data_dir is None else read_folder(task, Path(data_dir))
    else:
        if evaluation is None:
            raise DataError("--train needs --eval, the file that the figures are measured on")
        files = Path(str(train)), Path(evaluation)
        name, metric = Path(files[0].name.removesuffix(PACKED)).stem, "accuracy"
        parts = [(file, read_examples(file, columns, unlabelled=known_labels is not None)) for file in files]
    (train_file, training), *evaluated = parts
    if not evaluated[0][1].labels:
        metric = AGREEMENT
    named_in, naming = (train_file, training) if training.labels else evaluated[0]
    labels = label_names(naming, known_labels, named_in)
    for file, examples in evaluated:
        check_labels(examples, labels, file)
    if metric == "f1" and labels[1:2] != ("1",):
        have = ", ".join(labels)
        raise DataError(f"--task {task}: F1 is that of the second class, which must be '1'; the model has {have}")
    evaluated_on = f"{name}'s evaluation data" if evaluation is None else Path(evaluation).name
    return TaskData(name, metric, labels, training, evaluated_on, *(examples for _, examples in evaluated))


def _named(columns: Columns) -> dict[str, str | None]:
    """By option."""
    return {"--text-column": columns.text, "--pair-column": columns.pair, "--label-column": columns.label}


def label_names(examples: Examples, known: tuple[str, ...] | None, file: Path) -> tuple[str, ...]:
    """The class names in class order: a fine-tuned model's own, or those of the file (numbers by value).

    Raises:
        DataError: fewer than two labels, or one the model does not know.
    """
    found = sorted(set(examples.labels))
    if known is not None:
        numbered = tuple(str(i) for i in range(len(known)))
        generic = tuple(f"LABEL_{i}" for i in range(len(known)))
        labels = numbered if known == generic and found and set(found) <= set(numbered) else known
        check_labels(examples, labels, file)
        return labels
    if len(found) < 2:
        raise DataError(f"{file}: every row has the label {found[0]!r}; a classifier needs at least two")
    with contextlib.suppress(ValueError):  # names that are not all numbers stay in alphabetical order
        found.sort(key=float)
    return tuple(found)


def hold_out(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (trained on, held out): a tenth of the training rows, at most 2,000, that no gradient sees."""
    held = min(HELD_OUT_MOST, max(1, round(n * HELD_OUT_SHARE)))
    if n - held < 1:
        raise DataError(f"{n} training rows are too few: a tenth is held out to fit the threshold")
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[held:]), np.sort(order[:held])
