"""A bundle on labelled data: the metric, every class, and the inputs whose label is no longer full BERT's."""

from dataclasses import dataclass, replace

import numpy as np

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.tables import Examples
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
    """An input that the gates give another label than full BERT.

    Args:
        line: of the data file, on which it begins.
        text: its beginning, on one line; of a pair both, with ` | ` between them.
        full, gates, expected: full BERT's label, the one with gates, the true one.
    """

    line: int
    text: str
    full: str
    gates: str
    expected: str


@dataclass(frozen=True)
class DataCheck:
    """A bundle on labelled data. What compares with full BERT is None where the bundle has none.

    Args:
        value, full_value: the metric, with gates and of full BERT.
        classes, full_classes: the same per label, in the model's order.
        label_agreement: share of inputs that both give the same label.
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
    """
    labels, metric = predictor.labels, predictor.bundle.manifest.metric
    expected = np.array([labels.index(label) for label in examples.labels])
    inputs = predictor.tokenizer.encode(examples.texts)
    logits, routes = predictor.run(inputs, router="gates")
    gates = logits.argmax(axis=1)
    classes = class_scores(gates, expected, labels)
    check = DataCheck(len(examples), metric, METRICS[metric](gates, expected), statistics(routes), classes)
    if "full" not in predictor.engine_info.files:
        return check
    full = predictor.run(inputs, router="full")[0].argmax(axis=1)
    flipped = np.flatnonzero(full != gates)
    return replace(
        check,
        full_value=METRICS[metric](full, expected),
        full_classes=class_scores(full, expected, labels),
        label_agreement=float((full == gates).mean()),
        flips=tuple(
            Flip(
                examples.lines[row],
                one_line(examples.texts[row]),
                labels[full[row]],
                labels[gates[row]],
                examples.labels[row],
            )
            for row in flipped.tolist()
        ),
        better=int((gates == expected)[flipped].sum()),
        worse=int((full == expected)[flipped].sum()),
    )


def class_scores(predicted: np.ndarray, expected: np.ndarray, labels: tuple[str, ...]) -> tuple[ClassScore, ...]:
    """Class numbers, int [n] both -> a score per label."""
    found = []
    for index, label in enumerate(labels):
        claimed, true = predicted == index, expected == index
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
