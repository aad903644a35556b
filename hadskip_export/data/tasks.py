"""Where a task's examples come from and what is measured on them; the held-out slice."""

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hadskip_export.data.columns import ANY_COLUMNS, Columns
from hadskip_export.data.examples import Examples, check_labels, names_in, read_examples
from hadskip_export.data.glue import GLUE_TASKS, HUB_REPOSITORY, read_folder, read_hub
from hadskip_export.data.metrics import AGREEMENT, check_tells, metric_of
from hadskip_export.data.problems import MULTI, SCORE_NAME, SCORES, SINGLE, Problem, ProblemType, groups_of, numbered
from hadskip_export.data.rows import PACKED
from hadskip_export.support.errors import DataError
from hadskip_export.support.words import printable

HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 2000


@dataclass(frozen=True)
class TaskData:
    """Texts of a task; what a fine-tuned model is its own teacher of may lack labels.

    Args:
        metric: what is measured on the evaluation texts; `AGREEMENT` where they have no labels.
        evaluated_on: the name of the evaluation texts, as a person reads it.
        mismatched: MNLI's second evaluation.
    """

    name: str
    metric: str
    problem: Problem
    train: Examples
    evaluated_on: str
    evaluation: Examples
    mismatched: Examples | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.problem.labels

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
    known: Problem | None = None,
    problem_type: ProblemType | None = None,
    metric: str | None = None,
    repository: str = HUB_REPOSITORY,
) -> TaskData:
    """Reads a GLUE task, from a folder or the hub, or any pair of labelled files.

    Args:
        known: of a fine-tuned model, of which either file may be without labels.
        problem_type: what the labels of the training file are; left out, several where its rows have lists, else one.
        metric: a name in `METRICS`; the usual one of the task or the problem if left out.
        repository: where on the hub GLUE is, or a folder laid out like it.

    Raises:
        DataError: see `read_folder`, `read_hub`, `read_examples`; also an unknown task, what goes with the other of
            `task` and `train`, a label that training (or the model) does not know, classes in an order that the
            metric cannot have, or queries that it says nothing of.
    """
    if (task is None) == (train is None):
        raise DataError("give either --task, or --train with --eval")
    alien = {"--data-dir": data_dir} if task is None else {"--eval": evaluation, **columns.by_option}
    if option := next((option for option, given in alien.items() if given is not None), None):
        mine, other = ("--train", "--task") if task is None else ("--task", "--train")
        raise DataError(f"{option}: goes with {other}, not with {mine}; leave it out")
    if task is not None:
        if task not in GLUE_TASKS:
            raise DataError(f"--task {task}: not known; there are {', '.join(GLUE_TASKS)} (or use --train and --eval)")
        if problem_type not in (None, SINGLE) or (known and known.type != SINGLE):
            raise DataError(f"--task {task}: is of one label of several; give other texts with --train and --eval")
        name, metric = task, metric or GLUE_TASKS[task].metric
        known = known or Problem(SINGLE, GLUE_TASKS[task].labels)
        parts = read_hub(task, repository) if data_dir is None else read_folder(task, Path(data_dir))
    else:
        if evaluation is None:
            raise DataError("--train needs --eval, the file that the figures are measured on")
        files = Path(str(train)), Path(evaluation)
        name = printable(Path(files[0].name.removesuffix(PACKED)).stem)
        parts = _read_pair(files, columns, known, problem_type)
    (train_file, training), *evaluated = parts
    named_in, naming = (train_file, training) if training.labels else evaluated[0]
    labels = label_names(naming, known, named_in)
    problem = Problem(naming.problem_type, labels) if known is None else replace(known, labels=labels)
    for file, examples in evaluated:
        check_labels(examples, labels, file)
    if task is not None and metric == "f1" and labels[1:2] != ("1",):
        have = ", ".join(labels)
        raise DataError(f"--task {task}: F1 is that of the second class, which must be '1'; the model has {have}")
    named = metric_of(problem, metric)  # checked, whether or not there are labels to measure it on
    shown = evaluated[0][1]
    check_tells(named, problem.targets(shown.labels), groups_of(shown.texts), str(evaluated[0][0]))
    metric = named if shown.labels else AGREEMENT
    evaluated_on = f"{name}'s evaluation data" if evaluation is None else printable(Path(evaluation).name)
    return TaskData(name, metric, problem, training, evaluated_on, *(examples for _, examples in evaluated))


def _read_pair(
    files: tuple[Path, Path], columns: Columns, known: Problem | None, problem_type: ProblemType | None
) -> list[tuple[Path, Examples]]:
    """What is trained on, and what is evaluated on, of one kind of labels."""
    if known is not None and problem_type not in (None, known.type):
        raise DataError(f"--problem-type {problem_type}: the fine-tuned model is one of {known.type}; leave it out")
    kind = problem_type or (known.type if known else None)
    found = []
    for file in files:
        examples = read_examples(file, columns, problem_type=kind, unlabelled=known is not None)
        kind = kind or examples.problem_type
        found.append((file, examples))
    of_pairs = {isinstance(examples.texts[0], tuple): file for file, examples in found}
    if len(of_pairs) > 1:
        raise DataError(
            f"{of_pairs[False]}: has single texts, and {of_pairs[True]} has pairs; name the second text with"
            " --pair-column"
        )
    return found


def label_names(examples: Examples, known: Problem | None, file: Path) -> tuple[str, ...]:
    """The class names in class order: a fine-tuned model's own, or those of the file (numbers by value).

    Raises:
        DataError: fewer than two labels, or one the model does not know.
    """
    found = sorted({name for label in examples.labels for name in names_in(label)})
    if known is not None:
        numbers = tuple(str(i) for i in range(len(known.labels)))
        names = examples.classes if len(examples.classes) == len(numbers) else numbers
        unnamed = numbered(known.labels) == numbers and bool(found) and set(found) <= set(names)
        labels = names if unnamed else known.labels
        check_labels(examples, labels, file)
        return labels
    if examples.problem_type in SCORES:
        return (SCORE_NAME,)
    if examples.problem_type == MULTI and len(found) < 2:
        raise DataError(
            f"{file}: {len(found) or 'no'} label in all rows; several are needed, else give one for each text"
        )
    if len(found) < 2:
        raise DataError(f"{file}: every row has the label {found[0]!r}; a classifier needs at least two")
    with contextlib.suppress(ValueError):  # names that are not all numbers stay in alphabetical order
        found.sort(key=float)
    return tuple(found)


def hold_out(n: int, seed: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (trained on, held out): a tenth of the training rows, at most 2,000, that no gradient sees.

    Args:
        groups: of each row, int [n]; if given, a group is held out whole, for documents are ranked against each other.
    """
    held = min(HELD_OUT_MOST, max(1, round(n * HELD_OUT_SHARE)))
    if n - held < 1:
        raise DataError(f"{n} training rows are too few: a tenth is held out to fit the threshold")
    random = np.random.default_rng(seed)
    if groups is not None and len(np.unique(groups)) > 1:
        chosen = np.zeros(n, bool)
        for group in random.permutation(np.unique(groups))[:-1]:  # the last one is to train on, however large
            if chosen.sum() >= held:
                break
            chosen |= groups == group
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)
    order = random.permutation(n)
    return np.sort(order[held:]), np.sort(order[:held])
