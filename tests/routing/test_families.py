"""Families of routes by enumeration, and draws from them."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hadskip_export.routing.families import FAMILIES, Draw, sizes_around
from hadskip_export.routing.routes import Route, is_route


@st.composite
def cases(draw) -> tuple[float, int, int]:
    """(budget in layers, spread, number of layers)"""
    layers = draw(st.integers(1, 12))
    budget = draw(st.one_of(st.integers(1, layers).map(float), st.floats(0.01, layers)))
    return budget, draw(st.integers(0, 3)), layers


@example((1.5, 0, 3))
@example((0.25, 0, 3))
@example((12.0, 3, 12))
@given(cases())
def test_sizes_are_those_within_the_spread_and_those_on_either_side_of_the_budget(case):
    budget, spread, layers = case
    wanted = [
        size
        for size in range(1, layers + 1)
        if abs(size - budget) <= spread or abs(size - budget) < 1 or (size == 1 and budget < 1)
    ]
    assert sizes_around(budget, spread, layers) == wanted != []


@pytest.mark.parametrize(
    ("budget", "spread", "sizes"), [(3, 1, [2, 3, 4]), (4.5, 1, [4, 5]), (1, 1, [1, 2]), (6, 1, [5, 6]), (3, 0, [3])]
)
def test_sizes_of_a_model_of_six_layers(budget, spread, sizes):
    assert sizes_around(budget, spread, 6) == sizes


def by_enumeration(name: str, sizes: list[int], layers: int) -> set[Route]:
    """All routes of a family, picked from all sets of layers by what the family promises."""
    promises = {
        "nested": lambda route: route[-1] == layers and route[:-1] == tuple(range(1, len(route))),
        "prefix": lambda route: max(route) == len(route),
        "all": lambda route: True,
    }
    every = (route for size in sizes for route in itertools.combinations(range(1, layers + 1), size))
    return {route for route in every if promises[name](route)}


@pytest.mark.parametrize("name", FAMILIES)
@given(case=cases())
def test_a_family_has_the_routes_that_it_promises_each_once(name, case):
    layers, sizes = case[2], sizes_around(*case)
    family = FAMILIES[name](sizes, layers)
    assert len(family) == len(set(family)) and set(family) == by_enumeration(name, sizes, layers)
    assert all(is_route(route, layers) for route in family)


# Draws


@st.composite
def families(draw) -> list[Route]:
    """Any routes in any order."""
    layers = draw(st.integers(1, 6))
    every = [r for size in range(1, layers + 1) for r in itertools.combinations(range(1, layers + 1), size)]
    return draw(st.lists(st.sampled_from(every), min_size=1, max_size=12, unique=True))


@settings(deadline=None)
@given(families(), st.integers(0, 100), st.integers(0, 1000))
def test_a_batch_gets_routes_of_the_family_among_them_a_shortest_and_a_longest(case, number, seed):
    drawn = Draw(case, seed)(number)
    sizes, every = [len(route) for route in drawn], sorted({len(route) for route in case})
    assert set(drawn) <= set(case) and sizes == sorted(set(sizes))  # one of a size
    assert (sizes[0], sizes[-1]) == (every[0], every[-1])
    assert len(sizes) == min(4, len(every))
    assert drawn == Draw(case, seed)(number)


def standard_errors(count: int, share: float, n: int) -> float:
    """How far a count of `n` draws is from `share` of them."""
    return abs(count - n * share) / math.sqrt(n * share * (1 - share))


def test_sizes_between_come_evenly_and_routes_of_a_size_evenly_too():
    n = 3000
    drawn = [Draw(FAMILIES["all"](range(1, 7), 6), seed=1)(number) for number in range(n)]
    sizes, counts = Counter(len(route) for routes in drawn for route in routes), Counter(itertools.chain(*drawn))
    assert sizes[1] == sizes[6] == n
    assert all(standard_errors(sizes[size], 1 / 2, n) < 4 for size in (2, 3, 4, 5))
    assert all(standard_errors(counts[layer,], 1 / 6, n) < 4 for layer in range(1, 7))
    assert all(
        standard_errors(counts[route], 1 / 2 / math.comb(6, size), n) < 4.5
        for size in (2, 3, 4, 5)
        for route in itertools.combinations(range(1, 7), size)
    )


def test_one_batch_is_not_like_the_next_and_seeds_differ():
    family = FAMILIES["nested"](range(2, 13), 12)
    batches = [[Draw(family, seed)(number) for number in range(20)] for seed in (0, 1)]
    assert all(len({tuple(routes) for routes in of_seed}) > 10 for of_seed in batches) and batches[0] != batches[1]
