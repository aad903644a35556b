"""Each metric against its definition, counted one pair of labels at a time."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export.data.metrics import METRICS, accuracy, f1, matthews


def label_pairs(classes: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """(predicted, expected) of a few inputs; often one side is all one class."""
    label = st.integers(0, classes - 1)
    constant = st.tuples(label, st.lists(label, min_size=1, max_size=20))
    return st.one_of(
        st.lists(st.tuples(label, label), min_size=1, max_size=60),
        constant.map(lambda drawn: [(drawn[0], other) for other in drawn[1]]),
        constant.map(lambda drawn: [(other, drawn[0]) for other in drawn[1]]),
    )


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    predicted, expected = zip(*pairs, strict=True)
    return np.array(predicted, np.int64), np.array(expected, np.int64)


def test_their_names():
    assert list(METRICS.items()) == [
        ("accuracy", accuracy),
        ("f1", f1),
        ("matthews", matthews),
        ("agreement", accuracy),
    ]


@given(label_pairs(3))
def test_accuracy(pairs):
    assert accuracy(*arrays(pairs)) == sum(one == other for one, other in pairs) / len(pairs)


@given(label_pairs(2))
def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_class_1(pairs):
    count = Counter(pairs)
    hits, false_alarms, misses = count[1, 1], count[1, 0], count[0, 1]
    wanted = 0.0
    if hits:
        precision, recall = hits / (hits + false_alarms), hits / (hits + misses)
        wanted = 2 * precision * recall / (precision + recall)
    assert f1(*arrays(pairs)) == pytest.approx(wanted, abs=1e-12)


@given(label_pairs(2))
def test_matthews_of_two_classes(pairs):
    count = Counter(pairs)
    tp, tn, fp, fn = count[1, 1], count[0, 0], count[1, 0], count[0, 1]
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    wanted = (tp * tn - fp * fn) / math.sqrt(square) if square else 0.0
    assert matthews(*arrays(pairs)) == pytest.approx(wanted, abs=1e-12)


@given(label_pairs(4))
def test_matthews_of_more_classes(pairs):
    """Gorodkin's R_K as the confusion matrix has it (a fine-tuned model may know more classes than the task)."""
    ours, theirs = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    n, right = len(pairs), sum(one == other for one, other in pairs)
    square = (n * n - sum(c * c for c in ours.values())) * (n * n - sum(c * c for c in theirs.values()))
    covariance = n * right - sum(ours[label] * theirs[label] for label in range(4))
    wanted = covariance / math.sqrt(square) if square else 0.0
    assert matthews(*arrays(pairs)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_perfect_is_1_and_a_plain_float(metric):
    labels = np.array([0, 1, 1, 0, 1])
    assert metric(labels, labels) == pytest.approx(1.0)
    assert type(metric(labels, labels)) is type(metric(labels, 0 * labels)) is float


def test_where_they_are_undefined_they_are_0_without_a_warning(recwarn):
    zeros, mixed = np.zeros(4, np.int64), np.array([0, 1, 0, 1])
    assert f1(zeros, zeros) == f1(zeros, mixed) == f1(mixed, zeros) == 0
    assert matthews(zeros, mixed) == matthews(mixed, zeros) == matthews(zeros, zeros) == 0
    assert matthews(1 - mixed, mixed) == pytest.approx(-1)
    assert not recwarn
