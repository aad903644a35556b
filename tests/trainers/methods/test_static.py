"""The routes that the search for the best one compares."""

import math

import pytest

from hadskip_export.trainers.methods.static import MOST_ROUTES, fixed_routes


@pytest.mark.parametrize(("layers", "size"), [(6, 3), (3, 3), (4, 1), (12, 2)])
def test_all_routes_of_a_size_where_they_are_few(layers, size):
    routes = fixed_routes(layers, size)
    assert len(set(routes)) == len(routes) == math.comb(layers, size)
    assert all(len(set(route)) == size and list(route) == sorted(route) for route in routes)
    assert {layer for route in routes for layer in route} == set(range(1, layers + 1))


def test_a_random_choice_where_there_are_too_many():
    routes = fixed_routes(12, 6)
    assert len(set(routes)) == len(routes) == MOST_ROUTES < math.comb(12, 6)
    assert all(
        len(set(route)) == 6 and list(route) == sorted(route) and set(route) <= set(range(1, 13)) for route in routes
    )
    assert routes == fixed_routes(12, 6) != fixed_routes(12, 6, seed=1)
