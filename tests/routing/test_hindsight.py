"""The bound against every way to deal routes out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.routing.hindsight import hindsight


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
def test_no_way_to_deal_routes_out_does_better_and_one_comes_as_near_as_mixtures_allow(seed, inputs, routes):
    random = np.random.default_rng(seed)
    cost, layers = random.random((routes, inputs)), np.sort(random.choice(np.arange(1, 7), routes, replace=False))
    ways = [
        (cost[list(way), range(inputs)].mean(), layers[list(way)].mean())
        for way in itertools.product(range(routes), repeat=inputs)
    ]
    for budget in np.linspace(layers.min(), layers.max(), 7):
        bound = hindsight(cost, layers, float(budget))
        within = [value for value, ran in ways if ran <= budget + 1e-9]
        assert bound <= min(within) + 1e-9
        mixed = [
            low[0] + (budget - low[1]) / (high[1] - low[1]) * (high[0] - low[0])
            for low, high in itertools.product(ways, repeat=2)
            if low[1] < budget < high[1]
        ]
        assert bound == pytest.approx(min([*within, *mixed]), abs=1e-6)


def test_a_hand_worked_case():
    """Two inputs, routes of 1 and 3 layers. The second layer pair goes to the input that gains more by it."""
    cost = np.array([[0.9, 0.5], [0.1, 0.4]])
    assert hindsight(cost, np.array([1, 3]), 2.0) == pytest.approx((0.1 + 0.5) / 2)
    assert hindsight(cost, np.array([1, 3]), 1.0) == pytest.approx(0.7)
    assert hindsight(cost, np.array([1, 3]), 1.5) == pytest.approx((0.7 + 0.3) / 2)  # the first input half the time
    assert hindsight(cost, np.array([1, 3]), 3.0) == pytest.approx(0.25)
