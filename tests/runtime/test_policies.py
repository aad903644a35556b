"""Policies give the routes they promise."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.policies import CappedPolicy, ForcedPolicy, GatePolicy, StaticPolicy
from tests.runtime import pieces
from tests.runtime.pieces import cuts, drawn_routes, lengths, policies, salts, seeds, thresholds


def test_a_gate_fires_above_the_threshold_not_at_it():
    decisions = GatePolicy([0.5]).start(4)
    assert decisions.rows(0, [-1.0, 0.5, 0.5001, 2.0]) == [False, False, True, True]


def test_every_gate_has_a_threshold_of_its_own():
    decisions = GatePolicy([0.0, 2.0, -1.0]).start(2)
    assert [decisions.rows(index, [1.0, -0.5]) for index in range(3)] == [[True, False], [False, False], [True, True]]


def test_margin_and_threshold_meet_in_float32():
    """As in a whole graph, and in NumPy: .1 is more there than in Python."""
    margin = np.array([0.1], np.float32).tolist()
    assert margin > [0.1]
    assert GatePolicy([0.1]).start(1).rows(0, margin) == [False]


@pytest.mark.parametrize(("threshold", "fires"), [(-np.inf, True), (np.inf, False), (1e300, False), (-1e300, True)])
def test_a_threshold_beyond_float32_is_above_or_below_every_margin(threshold: float, fires: bool):
    margins = [float(np.finfo(np.float32).max), -float(np.finfo(np.float32).max), 0.0]
    assert GatePolicy([threshold]).start(3).rows(0, margins) == [fires] * 3


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, seeds, st.integers(1, 6))
def test_a_cap_keeps_the_first_layers_of_the_route_without_it(lengths, salts, threshold, seed, most):
    batch, policy = pieces.ragged(lengths, seed), GatePolicy([threshold] * len(salts))
    _, capped = pieces.chain(salts).run(batch, CappedPolicy(policy, most))
    _, free = pieces.chain(salts).run(batch, policy)
    assert (capped.sum(axis=1) <= most).all()
    np.testing.assert_array_equal(capped, free & (free.cumsum(axis=1) <= most))


@settings(max_examples=50, deadline=None)
@given(lengths, st.lists(st.booleans(), min_size=1, max_size=6), seeds, st.integers(1, 6))
def test_a_cap_keeps_the_first_layers_of_a_static_route(lengths, chosen, seed, most):
    """And leaves the route as it was for the next call."""
    route = np.array(chosen)
    chain = pieces.chain([0] * len(chosen), "none")
    _, routes = chain.run(pieces.ragged(lengths, seed), CappedPolicy(StaticPolicy(chosen), most))
    assert (routes == (route & (route.cumsum() <= most))).all()
    assert route.tolist() == chosen


def test_calls_at_the_same_time_have_a_state_each():
    """One policy object may be in the hands of many threads: what it remembers belongs to a call."""
    policy, in_step = CappedPolicy(GatePolicy([0.0] * 6), 3), threading.Barrier(4)

    def call(rows: int) -> list[list[bool]]:
        decisions = policy.start(rows)
        routes = []
        for index in range(6):
            in_step.wait()
            routes.append(decisions.rows(index, [1.0] * rows))
        return routes

    with ThreadPoolExecutor(4) as threads:
        for rows, routes in zip((1, 2, 3, 4), threads.map(call, (1, 2, 3, 4)), strict=True):
            assert routes == [[index < 3] * rows for index in range(6)]


# Terms, for a model that decides by itself


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), seeds, policies(remembering=False))
def test_terms_say_what_the_policy_decides(rows, num_layers, seed, make):
    """Whatever the margins are, as long as they are numbers."""
    policy, plain = make(rows, num_layers)
    thresholds, most = policy.terms(rows, num_layers)
    assert thresholds.dtype == np.float32 and thresholds.shape == (rows, num_layers)
    margins = np.random.default_rng(seed).normal(size=(num_layers, rows)).astype(np.float32)
    decisions = policy.start(rows)
    routes = np.array([decisions.rows(index, margins[index].tolist()) for index in range(num_layers)]).T
    fires = np.greater(margins.T, thresholds)
    np.testing.assert_array_equal(routes, fires & (fires.cumsum(axis=1) <= most))
    deciders = [plain(row) for row in range(rows)]
    expected = [
        [decide(index, margins[index, row]) for index in range(num_layers)] for row, decide in enumerate(deciders)
    ]
    np.testing.assert_array_equal(routes, np.array(expected, bool))


@given(st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=6), st.integers(1, 8))
def test_terms_of_a_static_route_under_a_cap(rows, chosen, most):
    thresholds, allowed = CappedPolicy(StaticPolicy(chosen), most).terms(rows, len(chosen))
    assert ((np.float32(0) > thresholds) == chosen).all() and thresholds.shape == (rows, len(chosen))
    assert allowed == min(most, len(chosen))


def test_of_two_caps_the_lower_one_counts():
    for inner, outer in ((1, 3), (3, 1)):
        policy = CappedPolicy(CappedPolicy(GatePolicy([0.0] * 4), inner), outer)
        assert policy.terms(2, 4)[1] == 1
        decisions = policy.start(1)
        assert [decisions.rows(index, [1.0]) for index in range(4)] == [[True], [False], [False], [False]]


# Forced routes


@settings(max_examples=200, deadline=None)
@given(lengths, salts, seeds, cuts)
def test_forced_routes_are_those_that_run_whatever_the_gates_say(lengths, salts, seed, cut):
    batch, forced = pieces.ragged(lengths, seed), drawn_routes(len(lengths), len(salts), seed)
    given_routes = forced.copy()
    logits, routes = pieces.chain(salts, cut).run(batch, ForcedPolicy(forced))
    np.testing.assert_array_equal(routes, given_routes)
    np.testing.assert_array_equal(forced, given_routes)
    expected, _ = pieces.one_at_a_time(batch, salts, pieces.plain_routes(given_routes))
    np.testing.assert_array_equal(logits, expected)


@settings(max_examples=100, deadline=None)
@given(lengths, salts, seeds, st.integers(1, 4))
def test_a_cap_goes_before_forced_routes(lengths, salts, seed, most):
    forced = drawn_routes(len(lengths), len(salts), seed)
    _, routes = pieces.chain(salts).run(pieces.ragged(lengths, seed), CappedPolicy(ForcedPolicy(forced), most))
    np.testing.assert_array_equal(routes, forced & (forced.cumsum(axis=1) <= most))
