"""Operating points: a budget has the thresholds of its point, or of its two neighbours in proportion."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export.routing.points import Point, thresholds_at, with_point
from hadskip_export.routing.routes import statistics
from hadskip_export.support.errors import BudgetError

LAYERS = 6


def point(budget: float, *thresholds: float) -> Point:
    return Point(budget, thresholds, "some texts", budget)


ONE, THREE, FOUR = point(1, 2.0, 4.0), point(3, 1.0, -4.0), point(4.5, 0.0, -4.0)
POINTS = (ONE, THREE, FOUR)
logits = st.floats(-30, 30)


@st.composite
def several(draw: st.DrawFn) -> tuple[Point, ...]:
    """Two points or more, each with its own thresholds for `LAYERS` gates."""
    budgets = draw(st.lists(st.integers(1, 8 * LAYERS), min_size=2, max_size=5, unique=True))
    gates = st.lists(logits, min_size=LAYERS, max_size=LAYERS)
    return tuple(point(budget / 8, *draw(gates)) for budget in sorted(budgets))


def at(points: tuple[Point, ...], budget: float) -> np.ndarray:
    """As a caller asks for it: below one layer a share of them."""
    return np.array(thresholds_at(points, budget if budget >= 1 else budget / LAYERS, LAYERS))


# At a budget


@given(several())
def test_a_budget_that_has_a_point_has_exactly_its_thresholds(points: tuple[Point, ...]):
    for one in points:
        assert tuple(at(points, one.budget)) == one.thresholds


def test_one_point_alone_is_to_be_had_and_nothing_else():
    assert thresholds_at((THREE,), 3, LAYERS) == THREE.thresholds
    for budget in (2.9, 3.1):
        with pytest.raises(BudgetError):
            thresholds_at((THREE,), budget, LAYERS)


def test_between_two_points_thresholds_are_in_proportion():
    assert thresholds_at(POINTS, 2, LAYERS) == (1.5, 0.0)
    assert thresholds_at(POINTS, 1.5, LAYERS) == (1.75, 2.0)
    assert thresholds_at(POINTS, 3.75, LAYERS) == (0.5, -4.0)


@given(several(), st.floats(0, 1), st.floats(0, 1))
def test_between_two_points_each_threshold_lies_between_theirs_and_moves_one_way(
    points: tuple[Point, ...], first: float, second: float
):
    for below, above in pairwise(points):
        width = above.budget - below.budget
        low, high = (at(points, below.budget + share * width) for share in sorted((first, second)))
        ends = np.sort([below.thresholds, above.thresholds], axis=0)
        for found in (low, high):
            assert (found >= ends[0] - 1e-9).all() and (found <= ends[1] + 1e-9).all()
        direction = np.sign(np.subtract(above.thresholds, below.thresholds))
        assert ((high - low) * direction >= -1e-9).all()


@given(several(), st.floats(0.01, 0.99))
def test_a_point_that_lies_on_the_way_changes_nothing(points: tuple[Point, ...], share: float):
    budget = points[0].budget + share * (points[1].budget - points[0].budget)
    between = point(budget, *at(points, budget))
    for part in (0.25, 0.5, 0.9):  # a share's layers are rounded to nine digits, and thresholds may be steep in them
        asked = points[0].budget + part * (points[1].budget - points[0].budget)
        np.testing.assert_allclose(at(with_point(points, between), asked), at(points, asked), atol=1e-6)


def test_below_one_a_budget_is_a_share_of_the_layers():
    assert thresholds_at(POINTS, 0.5, LAYERS) == THREE.thresholds
    assert thresholds_at(POINTS, 0.75, LAYERS) == FOUR.thresholds
    assert thresholds_at(POINTS, 1 / 3, LAYERS) == pytest.approx(thresholds_at(POINTS, 2, LAYERS))
    assert thresholds_at(POINTS, 1, LAYERS) == ONE.thresholds  # one layer, not all of them


@pytest.mark.parametrize(
    ("budget", "part"),
    [(4.6, "budget 4.6"), (6, "budget 6"), (0.1, "budget 0.6"), (0, "--budget 0"), (-1, "--budget -1"),
     (6.5, "--budget 6.5"), (float("nan"), "--budget nan"), (float("inf"), "--budget inf")],
)  # fmt: skip
def test_what_lies_outside_is_refused_in_one_line(budget: float, part: str):
    with pytest.raises(BudgetError) as refused:
        thresholds_at(POINTS, budget, LAYERS)
    message = str(refused.value)
    assert message.startswith(f"{part}: ") and "\n" not in message
    if part.startswith("budget"):  # the model has it and the bundle has not
        assert "operating points for 1, 3, 4.5; add it with hadskip-export calibrate" in message
        assert message.endswith(f"--{part} --write")


# More of them


@given(several(), st.integers(1, 8 * LAYERS))
def test_a_point_takes_its_place_or_that_of_the_one_of_its_budget(points: tuple[Point, ...], eighths: int):
    added = point(eighths / 8, *[99.0] * LAYERS)
    after = with_point(points, added)
    budgets = [one.budget for one in after]
    assert budgets == sorted({one.budget for one in points} | {added.budget})
    assert added in after
    assert set(after) - {added} == {one for one in points if one.budget != added.budget}


def test_a_point_that_was_met_has_what_was_seen():
    routes = np.array([[True, True, False], [True, False, False], [True, True, False]])
    found = Point.met(1.5, [0.5, 0.5, 0.5], "some.csv", statistics(routes), metric=0.75)
    assert found.thresholds == (0.5, 0.5, 0.5)
    assert found.mean_layers == pytest.approx(5 / 3)
    assert found.routes == (((1, 2), pytest.approx(2 / 3)), ((1,), pytest.approx(1 / 3)))
    assert (found.data, found.metric, found.full_metric) == ("some.csv", 0.75, None)
