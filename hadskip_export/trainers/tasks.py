"""Where a task's examples come from and what is measured on them; the held-out slice."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.errors import DataError
from hadskip_export.tables import Columns, Examples, check_labels, read_examples

HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 2000


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE's folder layout."""

    folder: str
    metric: str
    columns: Columns


GLUE_TASKS = {"sst2": GlueTask("SST-2", "accuracy", Columns("sentence", None, "label"))}


@dataclass(frozen=True)
class TaskData:
    """Labelled texts of a task. `labels`: class names, index = class."""

    name: str
    metric: str
    labels: tuple[str, ...]
    train: Examples
    evaluation: Examples

    def indices(self, examples: Examples) -> np.ndarray:
        """Class of each example, int64 [n]."""
        index = {label: i for i, label in enumerate(self.labels)}
        return np.array([index[label] for label in examples.labels], np.int64)


def load_task(
    task: str | None,
    data_dir: str | None,
    train: str | None,
    evaluation: str | None,
    columns: Columns,
    known_labels: tuple[str, ...] | None,
) -> TaskData:
    """Reads a GLUE task, or any pair of labelled files.

    Args:
        known_labels: class names of a fine-tuned model; left out, they are those of the training file.

    Raises:
        DataError: see `read_examples`; also an unknown task, or a label that training (or the model) does not know.
    """
    if (task is None) == (train is None):
        raise DataError("give either --task with --data-dir, or --train with --eval")
    if task is not None:
        if task not in GLUE_TASKS:
            raise DataError(f"--task {task}: not known; there are {', '.join(GLUE_TASKS)} (or use --train and --eval)")
        if data_dir is None:
            raise DataError(f"--task {task} needs --data-dir, the folder with train.tsv and dev.tsv")
        glue = GLUE_TASKS[task]
        folder, metric, columns = Path(data_dir), glue.metric, glue.columns
        if (folder / glue.folder).is_dir():
            folder = folder / glue.folder
        train_file, eval_file = folder / "train.tsv", folder / "dev.tsv"
    else:
        if evaluation is None:
            raise DataError("--train needs --eval, the labelled file that the figures are measured on")
        metric, train_file, eval_file = "accuracy", Path(str(train)), Path(evaluation)
    training, evaluated = read_examples(train_file, columns), read_examples(eval_file, columns)
    labels = label_names(training, known_labels, train_file)
    check_labels(evaluated, labels, eval_file)
    return TaskData(task or train_file.stem, metric, labels, training, evaluated)


def label_names(training: Examples, known: tuple[str, ...] | None, file: Path) -> tuple[str, ...]:
    """The class names in class order: a fine-tuned model's own, or those of the training file (numbers by value).

    Raises:
        DataError: fewer than two labels, or one the model does not know.
    """
    found = sorted(set(training.labels))
    if known is not None:
        numbered = tuple(str(i) for i in range(len(known)))
        generic = tuple(f"LABEL_{i}" for i in range(len(known)))
        labels = numbered if known == generic and set(found) <= set(numbered) else known
        check_labels(training, labels, file)
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
