"""What logits come to, and what they should come to."""

import numpy as np
import pytest

from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE, Problem, groups_of, same_answers
from hadskip_export.support.errors import DataError

LOGITS = np.array([[2.0, -1.0, 0.1], [-3.0, -0.2, -0.1]], np.float32)
NAMES = ("a", "b", "c")


def test_one_of_several():
    problem = Problem(SINGLE, NAMES)
    assert problem.decide(LOGITS).tolist() == [0, 2]
    targets = problem.targets(["c", "a"])
    assert targets.tolist() == [2, 0] and targets.dtype == np.int64
    assert problem.named(targets[0]) == "c" and not problem.is_score


def test_any_of_several():
    problem = Problem(MULTI, NAMES)
    assert problem.decide(LOGITS).tolist() == [[True, False, True], [False, False, False]]
    targets = problem.targets([("b", "c"), ()])
    assert targets.tolist() == [[0, 1, 1], [0, 0, 0]] and targets.dtype == np.float32
    assert [problem.named(row) for row in targets] == ["b, c", "none"]
    assert same_answers(problem.decide(LOGITS), np.array([[1, 0, 1], [0, 0, 1]], np.float32)).tolist() == [True, False]


@pytest.mark.parametrize("kind", [REGRESSION, RANKING])
def test_a_score(kind: str):
    problem = Problem(kind, ("LABEL_0",))
    assert problem.is_score and problem.decide(LOGITS[:, :1]).tolist() == [2.0, -3.0]
    targets = problem.targets([0.5, 1.0])
    assert targets.tolist() == [0.5, 1.0] and targets.dtype == np.float32
    assert problem.named(targets[0]) == "0.5"


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION, RANKING])
def test_without_labels_there_are_no_targets(kind: str):
    assert Problem(kind, NAMES).targets([]) is None


def test_thresholds_are_probabilities_of_labels():
    problem = Problem(MULTI, NAMES).with_thresholds({"c": 0.6, "b": 0.2})
    assert problem.thresholds == (0.5, 0.2, 0.6)
    probabilities = 1 / (1 + np.exp(-LOGITS))
    assert (problem.decide(LOGITS) == (probabilities > problem.thresholds)).all()
    assert problem.with_thresholds({}) is problem
    for given, message in (
        ({"d": 0.5}, "'d': the model has a, b, c"), ({"a": 1}, "1, expected"), ({"a": 0.0}, "expected a number"),
        ({"a": True}, "expected a number"), ({"a": "0.5"}, "expected a number"), ({"a": float("nan")}, "expected"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            problem.with_thresholds(given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="single_label_classification"):
        Problem(SINGLE, NAMES).with_thresholds({"a": 0.4})


def test_documents_of_one_query_are_a_group():
    assert groups_of([("q", "a"), ("r", "b"), ("q", "c")]).tolist() == [0, 1, 0]
    assert groups_of(["x", "y"]).tolist() == [0, 0]
