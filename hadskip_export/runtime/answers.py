"""Logits -> what a caller gets: labels with their probabilities, or a score; and documents in the order of theirs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hadskip_export.data.problems import MULTI, REGRESSION, SINGLE, Problem
from hadskip_export.routing.routes import Route


@dataclass(frozen=True)
class Prediction:
    """The answer for one input. `label` and `score` are what a pipeline of `transformers` gives for it.

    Args:
        label: the likeliest class or label; of a score, its name.
        probabilities: of every class, softmax of the logits, or of every label, sigmoid of its logit; none of a score.
        layers: the layers that ran, numbered from 1.
        truncated: the input was longer than the model's maximum length and its end was not read.
        labels: those that are given: the class; or all whose probability is above their threshold, perhaps none.
        score: the probability of `label`; the number of a regression; the relevance of a pair, from 0 to 1.
    """

    label: str
    probabilities: dict[str, float]
    layers: tuple[int, ...]
    truncated: bool
    labels: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Ranked:
    """A document for a query, see `Predictor.rank`.

    Args:
        index: its place among the documents that were given.
        score, layers, truncated: as in `Prediction`.
    """

    index: int
    document: str
    score: float
    layers: tuple[int, ...]
    truncated: bool


Answer = Callable[[list[float], Route, bool], Prediction]  # logits, route, truncated


def answers_of(problem: Problem) -> Answer:
    """What makes a prediction of logits. In plain Python: on a handful of numbers NumPy's calls take five times as
    long."""
    labels = problem.labels

    def class_of(logits: list[float], route: Route, truncated: bool) -> Prediction:
        largest = max(logits)
        exponentials = [math.exp(logit - largest) for logit in logits]
        total = sum(exponentials)
        probabilities = {label: value / total for label, value in zip(labels, exponentials, strict=True)}
        label = labels[logits.index(largest)]
        return Prediction(label, probabilities, route, truncated, (label,), probabilities[label])

    def labels_of(logits: list[float], route: Route, truncated: bool) -> Prediction:
        probabilities = {label: sigmoid(logit) for label, logit in zip(labels, logits, strict=True)}
        given = tuple(
            label
            for (label, probability), threshold in zip(probabilities.items(), problem.thresholds, strict=True)
            if probability > threshold
        )
        label = labels[logits.index(max(logits))]
        return Prediction(label, probabilities, route, truncated, given, probabilities[label])

    def score_of(logits: list[float], route: Route, truncated: bool) -> Prediction:
        score = logits[0] if problem.type == REGRESSION else sigmoid(logits[0])
        return Prediction(labels[0], {}, route, truncated, (), score)

    return {SINGLE: class_of, MULTI: labels_of}.get(problem.type, score_of)


def sigmoid(logit: float) -> float:
    """Without a number too large for a float on the way."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def ranked(documents: Sequence[str], predictions: Sequence[Prediction], logits: Sequence[float]) -> list[Ranked]:
    """The best first, equal ones as they came. By the logits: far from 0 many have the same sigmoid."""
    order = sorted(range(len(documents)), key=lambda index: -logits[index])
    return [
        Ranked(index, documents[index], found.score, found.layers, found.truncated)
        for index, found in ((index, predictions[index]) for index in order)
    ]
