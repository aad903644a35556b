"""A graph that is given the terms of any router answers as the chain does under that router."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.conditional import Conditional
from hadskip_export.runtime.routers import CappedRouter, ForcedRouter, GateRouter
from tests.runtime import pieces
from tests.runtime.test_chain import drawn_routes, layouts, salts, thresholds


def graph(salts: list[int]) -> pieces.Counting:
    """What the graph promises, by the plainest loop."""

    def run(input_ids, token_type_ids, attention_mask, gate_thresholds, max_layers):
        hidden, ran = pieces.embeddings(input_ids, token_type_ids), []
        for index, salt in enumerate(salts):
            fires = pieces.gate(salt)(hidden, attention_mask)[0] > gate_thresholds[0, index]
            ran.append(float(fires and sum(ran) < max_layers[0]))
            if ran[-1]:
                hidden = pieces.layer(index)(hidden, attention_mask)
        return pieces.head(hidden), np.array([ran], np.float32)

    return pieces.Counting(run)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 9), salts, thresholds, st.integers(0, 1000), st.integers(1, 6), st.booleans(), st.booleans(), layouts
)
def test_one_input_is_one_call_and_takes_the_routers_route(
    length, salts, threshold, seed, most, forced, capped, layout
):
    batch = pieces.ragged([length], seed)
    router = ForcedRouter(drawn_routes(1, len(salts), seed)) if forced else GateRouter(threshold)
    if capped:
        router = CappedRouter(router, most)
    chain = pieces.chain(salts, layout)
    ours = Conditional(chain, graph(salts), batches=False)
    logits, routes = ours.run(batch, router)
    assert routes.dtype == bool
    assert ours.graph.rows == 1
    assert not sum(layer.rows for layer in chain.layers.values())
    for got, expected in zip((logits, routes), chain.run(batch, router), strict=True):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), salts, thresholds, st.integers(0, 1000))
def test_several_inputs_go_through_the_chain(lengths, salts, threshold, seed):
    batch = pieces.ragged(lengths, seed)
    ours = Conditional(pieces.chain(salts), graph(salts), batches=False)
    answers = ours.run(batch, GateRouter(threshold))
    assert ours.graph.rows == 0
    for got, expected in zip(answers, pieces.one_at_a_time(batch, salts, threshold), strict=True):
        np.testing.assert_array_equal(got, expected)
