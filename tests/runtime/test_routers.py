"""Routers give the routes they promise and ask their engines no more than they must."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.routers import CappedRouter, GateRouter, LookaheadRouter
from tests.runtime import pieces
from tests.runtime.test_chain import gate_router, lengths, salts, thresholds


def lookahead_router(salts: list[int], threshold: float) -> tuple[LookaheadRouter, pieces.Counting]:
    gates = pieces.Counting(pieces.gates(salts))
    return LookaheadRouter(gates, len(salts), threshold), gates


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000))
def test_lookahead_gives_the_routes_and_logits_of_separate_gates(lengths, salts, threshold, seed):
    batch = pieces.ragged(lengths, seed)
    logits, routes = pieces.chain(len(salts)).run(batch, lookahead_router(salts, threshold)[0])
    expected_logits, expected_routes = pieces.chain(len(salts)).run(batch, gate_router(salts, threshold))
    np.testing.assert_array_equal(routes, expected_routes)
    np.testing.assert_array_equal(logits, expected_logits)


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000))
def test_lookahead_asks_once_and_then_once_per_layer_that_ran(lengths, salts, threshold, seed):
    router, gates = lookahead_router(salts, threshold)
    _, routes = pieces.chain(len(salts)).run(pieces.ragged(lengths, seed), router)
    assert len(gates.batches) <= routes.any(axis=0).sum() + 1
    assert gates.rows <= routes.sum() + len(lengths)  # and only about the rows that changed


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), st.integers(1, 4))
def test_capped_lookahead_asks_once_and_then_once_per_layer_that_ran(lengths, salts, threshold, seed, most):
    router, gates = lookahead_router(salts, threshold)
    _, routes = pieces.chain(len(salts)).run(pieces.ragged(lengths, seed), CappedRouter(router, most))
    assert len(gates.batches) <= routes.any(axis=0).sum() + 1
    assert gates.rows <= routes.sum() + len(lengths)


@settings(max_examples=50, deadline=None)
@given(lengths, salts, st.integers(0, 1000))
def test_lookahead_answers_from_one_question_where_nothing_runs(lengths, salts, seed):
    router, gates = lookahead_router(salts, 1e9)
    _, routes = pieces.chain(len(salts)).run(pieces.ragged(lengths, seed), router)
    assert not routes.any()
    assert len(gates.batches) == 1


def test_a_gate_fires_above_the_threshold_not_at_it():
    margins = np.array([-1.0, 0.5, 0.5001, 2.0], np.float32)
    hidden, mask = np.zeros((4, 1, 3), np.float32), np.ones((4, 1), np.int64)
    expected = [False, False, True, True]
    assert GateRouter([lambda hidden, mask: margins], 0.5).select(0, hidden, mask).tolist() == expected
    lookahead = LookaheadRouter(lambda hidden, mask: margins[:, None].copy(), 1, 0.5)
    assert lookahead.select(0, hidden, mask).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), st.integers(1, 6))
def test_a_cap_keeps_the_first_layers_of_the_route_without_it(lengths, salts, threshold, seed, most):
    batch = pieces.ragged(lengths, seed)
    _, capped = pieces.chain(len(salts)).run(batch, CappedRouter(gate_router(salts, threshold), most))
    _, free = pieces.chain(len(salts)).run(batch, gate_router(salts, threshold))
    assert (capped.sum(axis=1) <= most).all()
    np.testing.assert_array_equal(capped, free & (free.cumsum(axis=1) <= most))


def test_a_router_lives_for_one_call():
    """Two batches of different sizes, each with a router of its own from the same gates."""
    gates = pieces.gates([3, 7])
    for rows in ([4, 2, 5], [1]):
        batch = pieces.ragged(rows, 1)
        _, routes = pieces.chain(2).run(batch, LookaheadRouter(gates, 2, 0.0))
        np.testing.assert_array_equal(routes, pieces.one_at_a_time(batch, [3, 7], 0.0)[1])
