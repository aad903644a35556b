"""What a model's logits answer: one label of several, any of several, or a score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from hadskip_export.support.errors import DataError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression", "ranking"]
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"
RANKING: ProblemType = "ranking"
PROBLEM_TYPES = get_args(ProblemType)
SCORES: tuple[ProblemType, ...] = (REGRESSION, RANKING)
SCORE_NAME = "LABEL_0"  # what `transformers` calls the one output of a model without names
THRESHOLD = 0.5  # probability above which a label is given, unless it has a threshold of its own

UNNAMED = "LABEL_"  # before a number, what `transformers` calls a class without a name

Label = str | tuple[str, ...] | float  # of a text: a class, any number of labels, or a score


@dataclass(frozen=True)
class Problem:
    """The first three are `transformers`' own `problem_type`. It has no name for the fourth: one logit without any,
    whose sigmoid says how well the second text of a pair answers the first (a cross-encoder).

    Args:
        labels: in the order of the logits; of a score its one name.
        thresholds: of `multi_label_classification`, the probability above which each label is given.
    """

    type: ProblemType
    labels: tuple[str, ...]
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.type == MULTI and not self.thresholds:
            object.__setattr__(self, "thresholds", (THRESHOLD,) * len(self.labels))

    @property
    def is_score(self) -> bool:
        return self.type in SCORES

    def with_thresholds(self, given: Mapping[str, float]) -> "Problem":
        """
        Args:
            given: label -> probability above which it is given; the others keep theirs.

        Raises:
            DataError: no label of the model, no probability, or a model that does not give several.
        """
        if not given:
            return self
        if self.type != MULTI:
            raise DataError(f"label thresholds: they go with {MULTI}, and the model is one of {self.type}")
        for label, threshold in given.items():
            if label not in self.labels:
                raise DataError(f"label threshold of {label!r}: the model has {', '.join(self.labels)}")
            if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
                raise DataError(f"label threshold of {label!r}: {threshold!r}, expected a number between 0 and 1")
        thresholds = zip(self.labels, self.thresholds, strict=True)
        found = tuple(float(given.get(label, threshold)) for label, threshold in thresholds)
        return Problem(self.type, self.labels, found)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """What the logits, float [n, labels], come to: the class, int64 [n]; whether each label is given, bool [n,
        labels]; or the score, float [n], of `ranking` before the sigmoid, which changes no order."""
        if self.type == SINGLE:
            return logits.argmax(axis=-1)
        if self.type == MULTI:
            thresholds = np.array(self.thresholds)
            return logits > np.log(thresholds) - np.log1p(-thresholds)
        return logits[:, 0]

    def targets(self, labels: Sequence[Label]) -> np.ndarray | None:
        """What `decide` should give, of the same shape; bool as float32, scores in float32. None without labels."""
        if not labels:
            return None
        if self.is_score:
            return np.array(labels, np.float32)
        index = {label: i for i, label in enumerate(self.labels)}
        if self.type == SINGLE:
            return np.array([index[str(label)] for label in labels], np.int64)
        given = np.zeros((len(labels), len(self.labels)), np.float32)
        for row, several in enumerate(labels):
            given[row, [index[label] for label in several]] = 1  # type: ignore[union-attr]
        return given

    def named(self, decided: np.ndarray) -> str:
        """One row of `decide`, for people."""
        if self.type == SINGLE:
            return self.labels[int(decided)]
        if self.type == MULTI:
            return ", ".join(label for label, given in zip(self.labels, decided, strict=True) if given) or "none"
        return f"{float(decided):.4g}"


def numbered(labels: Sequence[str]) -> tuple[str, ...]:
    """Classes as files name them: those that have no name by their number alone."""
    return tuple(label.removeprefix(UNNAMED) for label in labels)


def same_answers(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of what `Problem.decide` gives, bool [n]."""
    same = one == other
    return same if same.ndim == 1 else same.all(axis=1)


def groups_of(texts: Sequence[object]) -> np.ndarray:
    """Numbers the first texts of pairs, int64 [n]: documents of one query are ranked against each other. A single text
    is in a group with all others."""
    numbers: dict[object, int] = {}
    firsts = (text[0] if isinstance(text, tuple) else None for text in texts)
    return np.array([numbers.setdefault(first, len(numbers)) for first in firsts], np.int64)
