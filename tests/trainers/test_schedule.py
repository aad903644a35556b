"""Budgets, the path through them, and the penalty's glide from one to the next."""

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hadskip_export.errors import BudgetError
from hadskip_export.trainers.schedule import budget_name, glide, homotopy, resolve_budget

LAYERS = st.integers(1, 24)


@st.composite
def budgets(draw) -> tuple[float, int]:
    """(budget in layers, number of layers)"""
    layers = draw(LAYERS)
    return draw(st.one_of(st.integers(1, layers).map(float), st.floats(0.01, layers))), layers


@given(budgets())
def test_the_path_starts_at_all_layers_ends_at_the_budget_and_falls_by_one_layer_at_most(case):
    budget, layers = case
    path = homotopy(budget, layers)
    assert path[0] == layers or (len(path) == 1 and budget == layers)
    assert path[-1] == budget
    assert all(0 < before - after <= 1 for before, after in pairwise(path))
    assert all(step.is_integer() for step in path[:-1])


@pytest.mark.parametrize(
    ("budget", "layers", "path"),
    [(3, 6, [6, 5, 4, 3]), (4.5, 6, [6, 5, 4.5]), (6, 6, [6]), (0.5, 2, [2, 1, 0.5]), (1, 1, [1]), (5.5, 6, [6, 5.5])],
)
def test_the_path_of_the_paper(budget, layers, path):
    assert homotopy(budget, layers) == path


@example((0.333333333 * 12, 12))
@example((1.9999999, 3))
@given(budgets())
def test_every_budget_of_a_path_has_a_folder_of_its_own(case):
    """Else the run takes the budget asked for as done already, with the weights of the one before."""
    names = [budget_name(step) for step in homotopy(*case)]
    assert len(set(names)) == len(names)


def test_budget_names():
    assert [budget_name(budget) for budget in (3, 3.0, 4.5, 0.25)] == ["3", "3", "4.5", "0.25"]


@given(LAYERS, st.floats(0.001, 0.999))
def test_below_one_a_budget_is_a_share(layers, share):
    assert resolve_budget(share, layers) == share * layers


@given(budgets().filter(lambda case: case[0] >= 1))
def test_from_one_on_a_budget_is_a_number_of_layers(case):
    assert resolve_budget(*case) == case[0]


@pytest.mark.parametrize("budget", [0, 0.0, -0.5, -3, 6.01, 7, 1e9, math.nan, math.inf, -math.inf])
def test_an_impossible_budget_is_refused(budget):
    with pytest.raises(BudgetError, match="6 layers") as caught:
        resolve_budget(budget, 6)
    assert f"{budget:g}" in str(caught.value)


@given(st.floats(0.1, 24), st.floats(0.1, 24), st.floats(0, 500))
def test_the_glide_starts_near_one_budget_ends_at_the_other_and_never_turns_back(previous, budget, steps):
    path = [glide(previous, budget, step, steps) for step in range(math.ceil(steps) + 3)]
    low, high = sorted((previous, budget))
    slack = 1e-9
    assert all(low - slack <= aim <= high + slack for aim in path)
    ordered = path if budget >= previous else path[::-1]
    assert all(before <= after + slack for before, after in pairwise(ordered))
    assert path[-1] == pytest.approx(budget, abs=slack)
    if steps >= 1:
        assert abs(path[0] - previous) <= abs(budget - previous) / steps + slack


def test_the_glide_goes_in_equal_steps_and_then_stays():
    assert [glide(4, 3, step, 4) for step in range(6)] == [3.75, 3.5, 3.25, 3, 3, 3]
    assert glide(4, 3, 0, 0) == 3  # no glide: the target at once
