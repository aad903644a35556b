"""Routers give the routes they promise."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.routers import CappedRouter, ForcedRouter, GateRouter, StaticRouter
from hadskip_export.runtime.tokenization import Batch
from tests.runtime import pieces
from tests.runtime.test_chain import drawn_routes, layouts, lengths, salts, thresholds


def test_a_gate_fires_above_the_threshold_not_at_it():
    assert GateRouter(0.5).select(0, [-1.0, 0.5, 0.5001, 2.0], []) == [False, False, True, True]


def test_margin_and_threshold_meet_in_float32():
    """As in the one-file graph, and in NumPy: .1 is more there than in Python."""
    margin = np.array([0.1], np.float32).tolist()
    assert margin > [0.1]
    assert GateRouter(0.1).select(0, margin, []) == [False]


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), st.integers(1, 6))
def test_a_cap_keeps_the_first_layers_of_the_route_without_it(lengths, salts, threshold, seed, most):
    batch = pieces.ragged(lengths, seed)
    _, capped = pieces.chain(salts).run(batch, CappedRouter(GateRouter(threshold), most))
    _, free = pieces.chain(salts).run(batch, GateRouter(threshold))
    assert (capped.sum(axis=1) <= most).all()
    np.testing.assert_array_equal(capped, free & (free.cumsum(axis=1) <= most))


@settings(max_examples=50, deadline=None)
@given(lengths, st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 1000), st.integers(1, 6))
def test_a_cap_keeps_the_first_layers_of_a_static_route(lengths, chosen, seed, most):
    """And leaves the route as it was for the next call."""
    route = np.array(chosen)
    chain = pieces.chain([0] * len(chosen), "none")
    _, routes = chain.run(pieces.ragged(lengths, seed), CappedRouter(StaticRouter(route), most))
    assert (routes == (route & (route.cumsum() <= most))).all()
    assert route.tolist() == chosen


# Forced routes


def answers_on(batch: Batch, routes: np.ndarray) -> np.ndarray:
    """Logits, one row at a time and without padding."""
    logits = []
    for row, route in enumerate(routes):
        length = int(batch.attention_mask[row].sum())
        ids, mask, types = (
            array[row : row + 1, :length] for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        )
        hidden = pieces.embeddings(ids, types)
        for index in np.flatnonzero(route):
            hidden = pieces.layer(index)(hidden, mask)
        logits.append(pieces.head(hidden)[0])
    return np.array(logits, np.float32)


@settings(max_examples=200, deadline=None)
@given(lengths, salts, st.integers(0, 1000), layouts)
def test_forced_routes_are_those_that_run_whatever_the_gates_say(lengths, salts, seed, layout):
    batch, forced = pieces.ragged(lengths, seed), drawn_routes(len(lengths), len(salts), seed)
    given_routes = forced.copy()
    logits, routes = pieces.chain(salts, layout).run(batch, ForcedRouter(forced))
    np.testing.assert_array_equal(routes, given_routes)
    np.testing.assert_array_equal(forced, given_routes)
    np.testing.assert_array_equal(logits, answers_on(batch, given_routes))


@settings(max_examples=100, deadline=None)
@given(lengths, salts, st.integers(0, 1000), st.integers(1, 4))
def test_a_cap_goes_before_forced_routes(lengths, salts, seed, most):
    forced = drawn_routes(len(lengths), len(salts), seed)
    _, routes = pieces.chain(salts).run(pieces.ragged(lengths, seed), CappedRouter(ForcedRouter(forced), most))
    np.testing.assert_array_equal(routes, forced & (forced.cumsum(axis=1) <= most))
