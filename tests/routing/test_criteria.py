"""Each criterion by hand, and against the plainest loop: one input at a time, in Python's own numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.routing.criteria import CRITERIA, UNCERTAINTY, WORTH, Criterion, patient_entropy
from hadskip_export.routing.routes import FIXED_MARGIN

SURE, TORN = [math.log(9), 0.0], [0.0, 0.0]  # probabilities .9 and .1, and .5 and .5
ENTROPY_OF_SURE = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))  # .325 nats


def margins(name: str, *exits: list[float]) -> list[float]:
    """What a criterion says of one input's exits."""
    return CRITERIA[name].margins([np.array([answer], np.float32) for answer in exits])[0].tolist()


@pytest.mark.parametrize(
    ("name", "exits", "expected"),
    [
        ("entropy", [TORN, SURE], [math.log(2), ENTROPY_OF_SURE]),
        ("normalised-entropy", [TORN, SURE], [1.0, ENTROPY_OF_SURE / math.log(2)]),
        ("normalised-entropy", [[0.0, 0.0, 0.0]], [1.0]),
        ("doubt", [TORN, SURE], [0.5, 0.1]),
        (UNCERTAINTY, [[5.0, 1.0, 0.0], [0.0, 0.0, math.log(3)]], [0.5, 0.25]),
        (WORTH, [[5.0, 1.0, -2.5], [0.0, 0.0, 0.25]], [-2.5, 0.25]),
        ("patience", [[1.0, 0.0], [2.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.0, 1.0]], [1, 1 / 2, 1 / 3, 1, 1 / 2]),
        ("patient-entropy", [SURE, SURE, TORN, SURE], [20.0, ENTROPY_OF_SURE / math.log(2), 1.0, 1.0]),
    ],
    ids=str,
)
def test_by_hand(name, exits, expected):
    assert margins(name, *exits) == pytest.approx([math.inf, *expected], abs=1e-6)


def slow(name: str, exits: list[list[float]]) -> list[float]:
    """Of one input, from the definitions."""
    said, classes, entropies = [], [], []
    for answer in exits:
        logits = answer[:-1] if name in (UNCERTAINTY, WORTH) else answer
        top = max(logits)
        raised = [math.exp(logit - top) for logit in logits]
        shares = [value / sum(raised) for value in raised]
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        classes.append(logits.index(top))
        entropies.append(entropy / math.log(len(logits)))
        agreeing = 0
        while agreeing + 1 < len(classes) and classes[-agreeing - 2] == classes[-1]:
            agreeing += 1
        said.append(
            {
                "entropy": entropy,
                "normalised-entropy": entropies[-1],
                "doubt": 1 - max(shares),
                UNCERTAINTY: 1 / (1 + math.exp(answer[-1])),
                WORTH: answer[-1],
                "patience": 1 / (1 + agreeing),
                "patient-entropy": max(entropies[-2:]) if len(entropies) > 1 else FIXED_MARGIN,
            }[name]
        )
    return said


@st.composite
def answers(draw) -> np.ndarray:
    """float32 [exits, inputs, classes]"""
    exits, inputs, classes = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(2, 4))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([0.01, 1.0, 8.0]))
    return (random.standard_normal((exits, inputs, classes)) * scale).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(answers(), st.sampled_from(sorted(CRITERIA)))
def test_several_inputs_are_judged_as_each_alone_by_the_plainest_loop(exits, name):
    if name in (UNCERTAINTY, WORTH):
        exits = np.concatenate((exits, exits[:, :, :1]), axis=2)
    got = CRITERIA[name].margins(list(exits))
    assert got.dtype == np.float32 and np.isposinf(got[:, 0]).all()
    for row in range(exits.shape[1]):
        expected = slow(name, exits[:, row].tolist())
        np.testing.assert_allclose(got[row, 1:], expected, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(answers())
def test_with_two_classes_entropy_and_the_likeliest_class_put_inputs_in_one_order(exits):
    """BranchyNet and Shallow-Deep on the same exits then come to the same curve; with three classes they need not."""
    two = [answer[:, :2] for answer in exits]
    entropies, doubts = (CRITERIA[name].margins(two)[:, 1:].ravel() for name in ("entropy", "doubt"))
    by_entropy = entropies[np.argsort(doubts, kind="stable")]
    assert (np.diff(by_entropy) >= -1e-6 * by_entropy[1:]).all()


def test_with_three_classes_they_put_them_in_orders_of_their_own():
    """Two classes alike and none of the third, or the likeliest a little likelier and the others alike."""
    probabilities = np.array([[0.5, 0.5, 1e-9], [0.55, 0.225, 0.225]])
    exits = [np.log(probabilities).astype(np.float32)]
    entropies, doubts = (CRITERIA[name].margins(exits)[:, 1] for name in ("entropy", "doubt"))
    assert entropies[0] < entropies[1] and doubts[0] > doubts[1]


@settings(max_examples=50, deadline=None)
@given(answers())
def test_patience_of_one_exit_is_plain_entropy(exits):
    """PCEE-BERT with t = 1 is BranchyNet with normalised entropy."""
    alone = Criterion(patient_entropy)
    np.testing.assert_array_equal(alone.margins(list(exits)), CRITERIA["normalised-entropy"].margins(list(exits)))


def test_more_is_remembered_of_more_exits():
    """t = 3"""
    three = Criterion(patient_entropy, (FIXED_MARGIN, FIXED_MARGIN))
    got = three.margins([np.array([answer], np.float32) for answer in (SURE, SURE, SURE, TORN, SURE)])[0, 1:]
    sure = ENTROPY_OF_SURE / math.log(2)
    assert got.tolist() == pytest.approx([20, 20, sure, 1, 1], abs=1e-6)


@pytest.mark.parametrize(("name", "answer"), [("entropy", [24.0, -24.0]), ("doubt", [24.0, -24.0])])
def test_what_is_all_but_certain_is_still_told_apart(name, answer):
    """In float32 the likeliest class has all of it from 17 logits on."""
    (less,), (more,) = (margins(name, [value * share for value in answer])[1:] for share in (0.5, 1.0))
    assert 0 < more < 1e-18 < less


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_a_certainty_beyond_numbers_is_certain(logit):
    assert margins(UNCERTAINTY, [0.0, 0.0, logit])[1] == (1.0 if logit < 0 else 0.0)
