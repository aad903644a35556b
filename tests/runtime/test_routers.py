"""Routers give the routes they promise and ask their engines no more than they must."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.routers import CappedRouter, ForcedRouter, GateRouter, LookaheadRouter, StaticRouter
from hadskip_export.runtime.tokenization import Batch
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


@settings(max_examples=50, deadline=None)
@given(lengths, st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 1000), st.integers(1, 6))
def test_a_cap_keeps_the_first_layers_of_a_static_route(lengths, chosen, seed, most):
    """And leaves the route as it was for the next call."""
    route = np.array(chosen)
    _, routes = pieces.chain(len(chosen)).run(pieces.ragged(lengths, seed), CappedRouter(StaticRouter(route), most))
    assert (routes == (route & (route.cumsum() <= most))).all()
    assert route.tolist() == chosen


# Forced routes


def drawn_routes(rows: int, num_layers: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((rows, num_layers)) < random.random()


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
@given(lengths, salts, thresholds, st.integers(0, 1000), st.booleans())
def test_forced_routes_are_those_that_run_whatever_the_gates_say(lengths, salts, threshold, seed, lookahead):
    batch, forced = pieces.ragged(lengths, seed), drawn_routes(len(lengths), len(salts), seed)
    given_routes = forced.copy()
    router = lookahead_router(salts, threshold)[0] if lookahead else gate_router(salts, threshold)
    logits, routes = pieces.chain(len(salts)).run(batch, ForcedRouter(router, forced))
    np.testing.assert_array_equal(routes, given_routes)
    np.testing.assert_array_equal(forced, given_routes)
    np.testing.assert_array_equal(logits, answers_on(batch, given_routes))


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000))
def test_forced_routes_pay_for_every_separate_gate(lengths, salts, threshold, seed):
    gates = [pieces.Counting(pieces.gate(salt)) for salt in salts]
    router = ForcedRouter(GateRouter(gates, threshold), drawn_routes(len(lengths), len(salts), seed))
    pieces.chain(len(salts)).run(pieces.ragged(lengths, seed), router)
    assert [gate.rows for gate in gates] == [len(lengths)] * len(salts)


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000))
def test_forced_routes_pay_for_lookahead_as_if_its_gates_had_chosen_them(lengths, salts, threshold, seed):
    forced = drawn_routes(len(lengths), len(salts), seed)
    router, gates = lookahead_router(salts, threshold)
    pieces.chain(len(salts)).run(pieces.ragged(lengths, seed), ForcedRouter(router, forced))
    changed = forced[:, :-1]  # nobody asks after the last layer
    assert len(gates.batches) == 1 + changed.any(axis=0).sum()
    assert gates.rows == len(lengths) + changed.sum()


@settings(max_examples=100, deadline=None)
@given(lengths, salts, st.integers(0, 1000), st.integers(1, 4))
def test_a_cap_goes_before_forced_routes(lengths, salts, seed, most):
    forced = drawn_routes(len(lengths), len(salts), seed)
    router = CappedRouter(ForcedRouter(gate_router(salts, 0.0), forced), most)
    _, routes = pieces.chain(len(salts)).run(pieces.ragged(lengths, seed), router)
    np.testing.assert_array_equal(routes, forced & (forced.cumsum(axis=1) <= most))
