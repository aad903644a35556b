"""Per class and per flipped input, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.verification.labels import MOST_CHARACTERS, ClassScore, class_scores, one_line


def test_scores_of_a_small_case():
    predicted, expected = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    assert class_scores(Problem(SINGLE, ("a", "b")), predicted, expected) == (
        ClassScore("a", 2 / 3, 2 / 3, 2 / 3, 3),
        ClassScore("b", 1 / 2, 1 / 2, 1 / 2, 2),
    )


def test_what_cannot_be_computed_is_none():
    scores = class_scores(Problem(SINGLE, tuple("abcd")), np.array([0, 0, 2]), np.array([0, 1, 0]))
    assert scores == (
        ClassScore("a", 1 / 2, 1 / 2, 1 / 2, 2),
        ClassScore("b", None, 0.0, 0.0, 1),
        ClassScore("c", 0.0, None, 0.0, 0),
        ClassScore("d", None, None, None, 0),
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_scores_are_those_of_a_slow_computation(pairs):
    for index, score in enumerate(
        class_scores(Problem(SINGLE, tuple("abcd")), *map(np.array, zip(*pairs, strict=True)))
    ):
        hits = pairs.count((index, index))
        claimed = sum(predicted == index for predicted, _ in pairs)
        assert score.support == sum(expected == index for _, expected in pairs)
        assert score.precision == (hits / claimed if claimed else None)
        assert score.recall == (hits / score.support if score.support else None)
        if hits:
            assert score.f1 == pytest.approx(2 / (1 / score.precision + 1 / score.recall))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("good", "good"),
        (" two\n\nlines\tand\u2028more ", "two lines and more"),
        ("\x1b[2Jgone\x07", "[2Jgone"),
        ("naïve 🙂", "naïve 🙂"),
        ("x" * 101, "x" * 99 + "…"),
        ("x" * 100, "x" * 100),
        (("good", "bad\n"), "good | bad"),
        (("x" * 500, "y" * 500), "x" * 49 + "… | " + "y" * 49 + "…"),
    ],
)
def test_a_text_in_a_listing_is_one_short_line(text, line):
    assert one_line(text) == line
    assert len(line) <= MOST_CHARACTERS + len(" | ")
