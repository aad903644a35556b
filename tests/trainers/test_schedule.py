"""Budgets, the path through them, and the penalty's glide from one to the next."""

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hadskip_export.routing.budgets import budget_name, resolve_budget
from hadskip_export.support.errors import BudgetError
from hadskip_export.trainers.schedule import glide, homotopy

LAYERS = st.integers(1, 24)


@st.composite
def budgets(draw) -> tuple[float, int]:
    """(budget in layers, number of layers)"""
    layers = draw(LAYERS)
    return draw(st.one_of(st.integers(1, layers).map(float), st.floats(0.01, layers))), layers


SAME = 1e-9  # of a layer: budgets nearer than this are one


@example((4.2, 6), 0.2)  # which floats miss
@example((1.0, 12), 0.1)
@example((5.333333333, 6), 1 / 3)
@example((5.9999999999, 6), 1.0)
@example((3.0, 6), 100.0)
@given(budgets(), st.sampled_from([0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 1.0, 1.5, 2.0]) | st.floats(0.02, 30))
def test_the_path_starts_at_all_layers_ends_at_the_budget_and_falls_by_a_step_at_most(case, step):
    budget, layers = case
    path = homotopy(budget, layers, step)
    assert path[-1] == budget
    assert path[0] == layers if layers - budget > SAME * max(1, step) else len(path) <= 2
    falls = [before - after for before, after in pairwise(path)]
    assert all(0 < fall <= step + 3 * SAME * max(1, step) for fall in falls)
    assert all(fall >= step - 2 * SAME for fall in falls[:-1])  # only the last may be shorter
    assert len(path) <= math.ceil((layers - budget) / step) + 1


@given(budgets())
def test_in_steps_of_a_layer_every_budget_passed_is_a_whole_number(case):
    path = homotopy(*case)
    assert all(float(budget).is_integer() for budget in path[:-1]) and path == homotopy(*case, 1.0)


@pytest.mark.parametrize(
    ("budget", "layers", "path"),
    [(3, 6, [6, 5, 4, 3]), (4.5, 6, [6, 5, 4.5]), (6, 6, [6]), (0.5, 2, [2, 1, 0.5]), (1, 1, [1]), (5.5, 6, [6, 5.5])],
)
def test_the_path_of_the_paper(budget, layers, path):
    assert homotopy(budget, layers) == path


@example((0.333333333 * 12, 12), 1.0)
@example((1.9999999, 3), 1.0)
@example((5.333333333, 6), 1 / 3)
@given(budgets(), st.floats(0.02, 30))
def test_every_budget_of_a_path_has_a_folder_of_its_own(case, step):
    """Else the run takes the budget asked for as done already, with the weights of the one before."""
    names = [budget_name(budget) for budget in homotopy(*case, step)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("step", "decimals"), [(0.1, 1), (0.3, 1), (0.25, 2), (0.07, 2)])
@given(layers=LAYERS)
def test_budgets_passed_are_named_as_a_person_would_write_them(step, decimals, layers):
    """`build --budget 3.7` must find the folder."""
    for name in map(budget_name, homotopy(0.5, layers, step)):
        assert len(name.partition(".")[2]) <= decimals, name


def test_budget_names():
    assert [budget_name(budget) for budget in (3, 3.0, 4.5, 0.25)] == ["3", "3", "4.5", "0.25"]


@given(LAYERS, st.floats(0.001, 0.999))
def test_below_one_a_budget_is_a_share(layers, share):
    assert resolve_budget(share, layers) == pytest.approx(share * layers, abs=1e-9)


@given(LAYERS, st.integers(1, 99))
def test_a_share_in_per_cent_is_named_in_hundredths_of_a_layer(layers, percent):
    assert len(budget_name(resolve_budget(percent / 100, layers)).partition(".")[2]) <= 2


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
