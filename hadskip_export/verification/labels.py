"""A bundle on labelled data: the metric, every class, and the inputs whose label is no longer full BERT's."""

from dataclasses import dataclass, replace

import numpy as np

from hadskip_export.data.examples import Examples
from hadskip_export.data.metrics import AGREEMENT, METRICS, check_tells
from hadskip_export.data.problems import Problem, groups_of, same_answers
from hadskip_export.routing.routes import RouteStatistics, statistics
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text

MOST_CHARACTERS = 100  # of a text in the listing


@dataclass(frozen=True)
class ClassScore:
    """One label. None: there is nothing to divide by, for it was never predicted (precision), is not in the data
    (recall), or neither (F1). `support`: how many inputs have it."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Flip:
    """An input that the gates give another label, or other labels, than full BERT.

    Args:
        line: of the data file, on which it begins.
        text: its beginning, on one line; of a pair both, with ` | ` between them.
        full, gates, expected: what full BERT gives, what the gates give, what is true.
    """

    line: int
    text: str
    full: str
    gates: str
    expected: str


@dataclass(frozen=True)
class DataCheck:
    """A bundle on labelled data. What compares with full BERT is None where the bundle has none. A model that gives
    scores has no classes, and its answers no flips.

    Args:
        value, full_value: the metric, with gates and of full BERT.
        classes, full_classes: the same per label, in the model's order.
        label_agreement: share of inputs that both give the same label, or labels; of scores `agreement` of the two.
        flips: the other inputs, in file order. Of these the gates are right on `better` and full BERT on `worse`.
    """

    texts: int
    metric: str
    value: float
    routes: RouteStatistics
    classes: tuple[ClassScore, ...]
    full_value: float | None = None
    full_classes: tuple[ClassScore, ...] | None = None
    label_agreement: float | None = None
    flips: tuple[Flip, ...] | None = None
    better: int | None = None
    worse: int | None = None


def check_data(predictor: Predictor, examples: Examples) -> DataCheck:
    """Runs labelled texts through the gates and, where the bundle has it, through full BERT.

    Args:
        examples: with labels that the model knows.

    Raises:
        DataError: see `check_tells`.
    """
    problem, metric = predictor.problem, predictor.bundle.manifest.metric
    expected, groups = problem.targets(examples.labels), groups_of(examples.texts)
    assert expected is not None
    check_tells(metric, expected, groups, "the labelled texts")
    inputs = predictor.tokenizer.encode(examples.texts)
    logits, routes = predictor.run(inputs, router="gates")
    gates, score = problem.decide(logits), METRICS[metric]
    value, classes = score(problem, logits, expected, groups), class_scores(problem, gates, expected)
    check = DataCheck(len(examples), metric, value, statistics(routes), classes)
    if "full" not in predictor.engine_info.files:
        return check
    full_logits, _ = predictor.run(inputs, router="full")
    full = problem.decide(full_logits)
    check = replace(
        check,
        full_value=score(problem, full_logits, expected, groups),
        full_classes=class_scores(problem, full, expected),
        label_agreement=METRICS[AGREEMENT](problem, logits, full, groups),
    )
    if problem.is_score:
        return check
    flipped = np.flatnonzero(~same_answers(full, gates))
    return replace(
        check,
        flips=tuple(
            Flip(
                examples.lines[row],
                one_line(examples.texts[row]),
                *(problem.named(answers[row]) for answers in (full, gates, expected)),
            )
            for row in flipped.tolist()
        ),
        better=int(same_answers(gates, expected)[flipped].sum()),
        worse=int(same_answers(full, expected)[flipped].sum()),
    )


def class_scores(problem: Problem, predicted: np.ndarray, expected: np.ndarray) -> tuple[ClassScore, ...]:
    """What `Problem.decide` gives, and what it should -> a score per label; none of numbers."""
    found = []
    for index, label in enumerate(() if problem.is_score else problem.labels):
        sides = predicted, expected
        claimed, true = (side == index if side.ndim == 1 else side[:, index] > 0 for side in sides)
        hits, claims, support = int((claimed & true).sum()), int(claimed.sum()), int(true.sum())
        found.append(
            ClassScore(label, _share(hits, claims), _share(hits, support), _share(2 * hits, claims + support), support)
        )
    return tuple(found)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def one_line(text: Text) -> str:
    """The beginning of a text, or of both of a pair, with nothing in it that moves a terminal's cursor."""
    parts = (text,) if isinstance(text, str) else text
    most = MOST_CHARACTERS // len(parts)
    lines = (" ".join("".join(c if c.isprintable() else " " for c in part).split()) for part in parts)
    return " | ".join(line if len(line) <= most else line[: most - 1] + "…" for line in lines)
