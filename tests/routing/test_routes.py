"""Figures of a set of routes against a slow count; routes as numbers from 1 and as rows of booleans."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadskip_export.routing.routes import as_route, as_row, is_route, statistics


@st.composite
def route_tables(draw) -> np.ndarray:
    """bool [n, L]; few layers, so that routes repeat, or many."""
    n, layers = draw(st.integers(1, 60)), draw(st.integers(1, 12))
    some = draw(st.lists(st.lists(st.booleans(), min_size=layers, max_size=layers), min_size=1, max_size=20))
    return np.array([some[draw(st.integers(0, len(some) - 1))] for _ in range(n)])


@given(route_tables())
def test_statistics_equal_a_slow_count(table):
    n, num_layers = table.shape
    routes = [tuple(layer for layer in range(1, num_layers + 1) if row[layer - 1]) for row in table]
    lengths = [len(route) for route in routes]
    mean = sum(lengths) / n
    shares = {route: routes.count(route) / n for route in set(routes)}

    got = statistics(table)

    assert got.mean_layers == pytest.approx(mean)
    assert got.standard_error == pytest.approx(math.sqrt(sum((k - mean) ** 2 for k in lengths) / n / n), abs=1e-12)
    assert got.distinct == len(shares)
    assert got.entropy_bits == pytest.approx(-sum(share * math.log2(share) for share in shares.values()), abs=1e-12)
    assert got.histogram == pytest.approx([lengths.count(k) / n for k in range(num_layers + 1)])
    assert got.usage == pytest.approx(
        [sum(layer in route for route in routes) / n for layer in range(1, num_layers + 1)]
    )
    assert [share for _, share in got.commonest] == pytest.approx(sorted(shares.values(), reverse=True)[:10])
    assert len({route for route, _ in got.commonest}) == len(got.commonest)
    assert all(share == pytest.approx(shares[route]) for route, share in got.commonest)


@given(route_tables())
def test_statistics_are_plain_numbers_that_json_can_hold(table):
    got = statistics(table)
    assert type(got.mean_layers) is type(got.standard_error) is type(got.entropy_bits) is float
    assert all(type(value) is float for value in (*got.histogram, *got.usage))
    assert all(type(layer) is int for route, _ in got.commonest for layer in route)
    assert math.copysign(1, got.entropy_bits) == 1  # not -0.0


def test_one_route_for_all():
    got = statistics(np.array([[True, False, True]] * 7))
    assert (got.mean_layers, got.standard_error, got.distinct, got.entropy_bits) == (2, 0, 1, 0)
    assert got.commonest == [((1, 3), 1.0)] and got.histogram == [0, 0, 1, 0] and got.usage == [1, 0, 1]


def test_two_routes_equally_common_are_one_bit():
    assert statistics(np.array([[True, False], [False, True]] * 3)).entropy_bits == 1.0


@given(st.lists(st.booleans(), max_size=24))
def test_routes_and_rows_are_each_others_inverse(row):
    route = as_route(np.array(row, bool))
    assert all(row[layer - 1] for layer in route) and len(route) == sum(row) and list(route) == sorted(route)
    assert as_row(route, len(row)).tolist() == row


@given(st.lists(st.integers(-1, 6) | st.booleans() | st.sampled_from([1.0, "1", None, (1,)]), max_size=5))
def test_a_route_is_layers_of_the_model_in_order(found):
    """By a slow count: one of the 2^L - 1 ways to choose some of the layers."""
    routes = [repr([layer for layer in range(1, 6) if number >> (layer - 1) & 1]) for number in range(1, 2**5)]
    assert is_route(found, 5) == is_route(tuple(found), 5) == (repr(found) in routes)


@pytest.mark.parametrize("found", [None, 1, 1.5, True, "12", {1: 2}, {1, 2}], ids=repr)
def test_what_is_no_list_is_no_route(found):
    assert not is_route(found, 5)
