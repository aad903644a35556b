"""The chain against the plainest loop: one input at a time, no padding, no shared batch."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.routers import CappedRouter, ForcedRouter, GateRouter, StaticRouter
from tests.runtime import pieces

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=9)
salts = st.lists(st.integers(0, 20), min_size=1, max_size=6)
thresholds = st.sampled_from([-1e9, -3.0, -1.5, 0.0, 0.5, 2.0, 3.0, 1e9])
layouts = st.sampled_from(["separate", "lookahead", "fused"])


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), layouts, st.booleans())
def test_a_batch_gives_what_each_input_gives_alone(lengths, salts, threshold, seed, layout, whole):
    batch = pieces.ragged(lengths, seed)
    logits, routes = pieces.chain(salts, layout, whole).run(batch, GateRouter(threshold))
    expected_logits, expected_routes = pieces.one_at_a_time(batch, salts, threshold)
    np.testing.assert_array_equal(routes, expected_routes)
    np.testing.assert_array_equal(logits, expected_logits)


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), layouts)
def test_a_layer_is_given_only_the_rows_that_run_it_and_only_their_length(lengths, salts, threshold, seed, layout):
    batch = pieces.ragged(lengths, seed)
    chain = pieces.chain(salts, layout)
    _, routes = chain.run(batch, GateRouter(threshold))
    for layer, ran in zip(chain.layers.values(), routes.T, strict=True):
        expected = [(ran.sum(), max(np.array(lengths)[ran]))] if ran.any() else []
        assert layer.batches == expected


@settings(max_examples=50, deadline=None)
@given(lengths, st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 1000))
def test_a_static_router_runs_its_layers_for_every_input(lengths, chosen, seed):
    """Whether the chain has the others or not."""
    batch, route = pieces.ragged(lengths, seed), np.array(chosen)
    whole = pieces.chain([0] * len(chosen), "none")
    logits, routes = whole.run(batch, StaticRouter(route))
    assert (routes == route).all()
    assert [layer.rows for layer in whole.layers.values()] == [len(lengths) * runs for runs in chosen]
    short = replace(whole, layers={index: layer for index, layer in whole.layers.items() if route[index]})
    for again, expected in zip(short.run(batch, StaticRouter(route)), (logits, routes), strict=True):
        np.testing.assert_array_equal(again, expected)
    mask, hidden = batch.attention_mask, pieces.embeddings(batch.input_ids, batch.token_type_ids)
    for index in np.flatnonzero(chosen):
        hidden = pieces.layer(index)(hidden, mask)
    np.testing.assert_array_equal(logits, pieces.head(hidden))


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), st.integers(1, 6), layouts)
def test_a_cap_gives_what_each_input_gives_alone(lengths, salts, threshold, seed, most, layout):
    batch = pieces.ragged(lengths, seed)
    logits, routes = pieces.chain(salts, layout).run(batch, CappedRouter(GateRouter(threshold), most))
    expected_logits, expected_routes = pieces.one_at_a_time(batch, salts, threshold, most)
    np.testing.assert_array_equal(routes, expected_routes)
    np.testing.assert_array_equal(logits, expected_logits)


def test_the_arrays_of_a_batch_are_left_as_they_were():
    batch = pieces.ragged([3, 5, 1], 0)
    before = [array.copy() for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)]
    pieces.chain([1, 2, 3]).run(batch, GateRouter(0.0))
    for array, expected in zip((batch.input_ids, batch.attention_mask, batch.token_type_ids), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_embeddings_are_given_the_arrays_they_take():
    """DistilBERT has no token types."""
    seen = []

    def embeddings(*arrays):
        seen.extend(arrays)
        return pieces.embeddings(arrays[0], np.zeros_like(arrays[0]))

    batch = pieces.ragged([2, 4], 0)
    chain = pieces.chain([1])
    replace(chain, embeddings=embeddings, embedding_inputs=("input_ids",)).run(batch, GateRouter(0.0))
    assert len(seen) == 1
    assert seen[0] is batch.input_ids


# Who is asked, how often


def any_router(kind: str, threshold: float, routes: np.ndarray, most: int):
    return {"gates": GateRouter(threshold), "forced": ForcedRouter(routes)}.get(
        kind, CappedRouter(GateRouter(threshold), most)
    )


routers = st.sampled_from(["gates", "forced", "capped"])


def drawn_routes(rows: int, num_layers: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((rows, num_layers)) < random.random()


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), routers, st.integers(1, 4))
def test_every_separate_gate_is_asked_about_every_row(lengths, salts, threshold, seed, kind, most):
    chain = pieces.chain(salts)
    router = any_router(kind, threshold, drawn_routes(len(lengths), len(salts), seed), most)
    chain.run(pieces.ragged(lengths, seed), router)
    assert [gate.rows for gate in chain.gates] == [len(lengths)] * len(salts)


@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), routers, st.integers(1, 4))
def test_a_lookahead_is_asked_once_and_then_about_what_a_layer_changed(lengths, salts, threshold, seed, kind, most):
    chain = pieces.chain(salts, "lookahead")
    router = any_router(kind, threshold, drawn_routes(len(lengths), len(salts), seed), most)
    _, routes = chain.run(pieces.ragged(lengths, seed), router)
    changed = routes[:, :-1]  # nobody asks after the last layer
    assert len(chain.lookahead.batches) == 1 + changed.any(axis=0).sum()
    assert chain.lookahead.rows == len(lengths) + changed.sum()


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), routers, st.integers(1, 4))
def test_fused_gates_are_asked_once_beside_the_layers(lengths, salts, threshold, seed, kind, most):
    chain = pieces.chain(salts, "fused")
    router = any_router(kind, threshold, drawn_routes(len(lengths), len(salts), seed), most)
    chain.run(pieces.ragged(lengths, seed), router)
    assert chain.lookahead.rows == len(lengths)
