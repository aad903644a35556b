"""Each metric against its definition, counted one pair of labels at a time."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn import metrics

from hadskip_export.data.metrics import (
    AGREEMENT,
    METRICS,
    USUAL,
    accuracy,
    f1,
    macro_f1,
    matthews,
    metric_of,
    micro_f1,
    pearson,
    spearman,
)
from hadskip_export.data.problems import MULTI, PROBLEM_TYPES, RANKING, REGRESSION, SINGLE, Problem
from hadskip_export.support.errors import DataError


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


def test_every_problem_has_its_own_and_a_usual_one():
    assert set(USUAL) == set(PROBLEM_TYPES)
    for kind, name in USUAL.items():
        labels = ("a", "b") if kind in (SINGLE, MULTI) else ("LABEL_0",)
        assert metric_of(Problem(kind, labels), None) == name and kind in METRICS[name].problems
    with pytest.raises(DataError, match="--metric f1: of regression there are pearson, spearman, mrr, ndcg"):
        metric_of(Problem(REGRESSION, ("LABEL_0",)), "f1")
    for name in ("f1", "auc"):
        with pytest.raises(DataError, match=f"--metric {name}: is for two classes"):
            metric_of(Problem(SINGLE, ("a", "b", "c")), name)
    assert metric_of(Problem(MULTI, ("a", "b", "c")), "auc") == "auc"


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


def of_kind(kind: str, count: int = 40, seed: int = 0) -> tuple[Problem, np.ndarray, np.ndarray, np.ndarray]:
    """A problem, logits, targets and groups by chance."""
    random = np.random.default_rng(seed)
    classes = 1 if kind in (REGRESSION, RANKING) else 2
    problem = Problem(kind, tuple("ab")[:classes])
    logits = random.normal(size=(count, classes)).astype(np.float32)
    targets = {
        SINGLE: random.integers(classes, size=count),
        MULTI: random.integers(2, size=(count, classes)).astype(np.float32),
        REGRESSION: random.normal(size=count).astype(np.float32),
        RANKING: random.integers(2, size=count).astype(np.float32),
    }
    return problem, logits, targets[kind], random.integers(8, size=count)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, one in METRICS.items() for kind in one.problems])
def test_perfect_is_1_and_a_plain_float(name: str, kind: str):
    problem, logits, targets, groups = of_kind(kind)
    if name in ("mrr", "ndcg"):  # of a query without a relevant document nothing is perfect
        targets[np.unique(groups, return_index=True)[1]] = 2 if kind == REGRESSION else 1
    perfect = {SINGLE: np.eye(2)[targets.astype(int)] if kind == SINGLE else None, MULTI: targets - 0.5}
    right = perfect.get(kind, targets.reshape(len(targets), -1))
    assert METRICS[name](problem, right, targets, groups) == pytest.approx(1)
    found = METRICS[name](problem, logits, targets, groups)
    assert type(found) is float and -1 <= found < 0.9


def test_those_of_labels_and_scores_are_the_librarys():
    for seed in range(20):
        problem, logits, targets, groups = of_kind(MULTI, seed=seed)
        given = logits > 0
        assert accuracy(given, targets) == metrics.accuracy_score(targets, given)
        assert macro_f1(given, targets) == metrics.f1_score(targets, given, average="macro")
        assert micro_f1(given, targets) == metrics.f1_score(targets, given, average="micro")
        wanted = metrics.roc_auc_score(targets, logits)
        assert METRICS["auc"](problem, logits, targets, groups) == pytest.approx(wanted)
        problem, logits, targets, groups = of_kind(SINGLE, seed=seed)
        wanted = metrics.roc_auc_score(targets, softmax(logits, axis=1)[:, 1])
        assert METRICS["auc"](problem, logits, targets, groups) == pytest.approx(wanted)
        _, logits, targets, groups = of_kind(REGRESSION, seed=seed)
        scores = np.round(logits[:, 0], 1)  # with ties
        assert pearson(scores, targets) == pytest.approx(stats.pearsonr(scores, targets).statistic)
        assert spearman(scores, targets) == pytest.approx(stats.spearmanr(scores, targets).statistic)


@pytest.mark.parametrize("kind", [REGRESSION, RANKING])
def test_documents_are_ranked_within_their_query(kind: str):
    """Each query by itself, in plain loops."""
    for seed in range(20):
        problem, logits, targets, groups = of_kind(kind, 30, seed)
        targets = np.abs(targets)
        reciprocal, gains = [], []
        for group in set(groups.tolist()):
            rows = [row for row in range(30) if groups[row] == group]
            order = sorted(rows, key=lambda row: -logits[row, 0])
            places = [place for place, row in enumerate(order, start=1) if targets[row] > 0.5]
            reciprocal.append(1 / places[0] if places else 0.0)
            if len(rows) > 1 and max(targets[rows]) > 0:
                gain, best = (
                    sum(targets[row] / math.log2(place + 1) for place, row in enumerate(some[:10], start=1))
                    for some in (order, sorted(rows, key=lambda row: -targets[row]))
                )
                gains.append(gain / best)
        assert METRICS["mrr"](problem, logits, targets, groups) == pytest.approx(np.mean(reciprocal))
        assert METRICS["ndcg"](problem, logits, targets, groups) == pytest.approx(np.mean(gains))


def test_a_document_that_ties_is_not_first():
    problem = Problem(RANKING, ("LABEL_0",))
    logits, targets, groups = np.zeros((4, 1)), np.array([1.0, 0, 0, 0]), np.zeros(4, int)
    assert METRICS["mrr"](problem, logits, targets, groups) == 0.25


def test_thresholds_of_labels_decide():
    problem = Problem(MULTI, ("a", "b")).with_thresholds({"b": 0.9})
    logits = np.array([[1.0, 1.0], [-1.0, 3.0]])
    assert METRICS["accuracy"](problem, logits, np.array([[1, 0], [0, 1]]), np.zeros(2)) == 1


def test_agreement_of_numbers_is_their_correlation():
    problem, logits, targets, groups = of_kind(REGRESSION)
    assert METRICS[AGREEMENT](problem, logits, 3 * logits[:, 0] + 1, groups) == pytest.approx(1)
    assert METRICS[AGREEMENT](problem, logits, targets, groups) == pearson(logits[:, 0], targets)


def test_where_they_are_undefined_they_are_0_without_a_warning(recwarn):
    zeros, mixed = np.zeros(4, np.int64), np.array([0, 1, 0, 1])
    assert f1(zeros, zeros) == f1(zeros, mixed) == f1(mixed, zeros) == 0
    assert matthews(zeros, mixed) == matthews(mixed, zeros) == matthews(zeros, zeros) == 0
    assert matthews(1 - mixed, mixed) == pytest.approx(-1)
    problem, logits, targets, groups = of_kind(MULTI)
    assert METRICS["auc"](problem, logits, 0 * targets, groups) == 0.5
    assert METRICS["macro_f1"](problem, 0 * logits - 1, 0 * targets, groups) == 0
    problem, logits, targets, groups = of_kind(RANKING)
    for name in ("pearson", "spearman", "mrr", "ndcg"):
        assert METRICS[name](problem, logits, 0 * targets, groups) == 0
    assert not recwarn
