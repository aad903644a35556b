"""A graph that is given the terms of any router answers as the chain does under that router."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.conditional import Conditional
from hadskip_export.runtime.routers import CappedRouter, ForcedRouter, GateRouter
from tests.runtime import pieces
from tests.runtime.test_chain import drawn_routes, layouts, salts, thresholds

INPUTS = ("input_ids", "token_type_ids")
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def graph(salts: list[int]) -> pieces.Counting:
    """What a graph promises, by the plainest loop."""

    def run(*inputs):
        rows = [run_one(*(array[row : row + 1] for array in inputs)) for row in range(len(inputs[0]))]
        return tuple(np.concatenate(column) for column in zip(*rows, strict=True))

    def run_one(input_ids, token_type_ids, attention_mask, gate_thresholds, max_layers):
        length = attention_mask.sum()
        mask, ran = attention_mask[:, :length], []
        hidden = pieces.embeddings(input_ids[:, :length], token_type_ids[:, :length])
        for index, salt in enumerate(salts):
            fires = pieces.gate(salt)(hidden, mask)[0] > gate_thresholds[0, index]
            ran.append(float(fires and sum(ran) < max_layers[0]))
            if ran[-1]:
                hidden = pieces.layer(index)(hidden, mask)
        return pieces.head(hidden), np.array([ran], np.float32)

    return pieces.Counting(run)


@pytest.mark.parametrize("batches", ["graph", "rows"])
@settings(max_examples=200, deadline=None)
@given(lengths, salts, thresholds, st.integers(0, 1000), st.integers(1, 6), st.booleans(), st.booleans(), layouts)
def test_a_batch_is_one_call_and_takes_the_routers_routes(
    batches, lengths, salts, threshold, seed, most, forced, capped, layout
):
    batch = pieces.ragged(lengths, seed)
    router = ForcedRouter(drawn_routes(len(lengths), len(salts), seed)) if forced else GateRouter(threshold)
    if capped:
        router = CappedRouter(router, most)
    alone = graph(salts)
    several = alone if batches == "graph" else graph(salts)
    logits, routes = Conditional(alone, several, INPUTS, len(salts)).run(batch, router)
    assert routes.dtype == bool
    asked, other = (alone, several) if len(lengths) == 1 else (several, alone)
    assert len(asked.batches) == 1 and (other is asked or not other.batches)
    for got, expected in zip((logits, routes), pieces.chain(salts, layout).run(batch, router), strict=True):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=50, deadline=None)
@given(lengths.filter(lambda lengths: len(lengths) > 1), salts, thresholds, st.integers(0, 1000))
def test_several_inputs_go_through_the_chain_where_it_has_none_for_them(lengths, salts, threshold, seed):
    batch = pieces.ragged(lengths, seed)
    ours = Conditional(graph(salts), pieces.chain(salts), INPUTS, len(salts))
    answers = ours.run(batch, GateRouter(threshold))
    assert ours.graph.rows == 0
    for got, expected in zip(answers, pieces.one_at_a_time(batch, salts, threshold), strict=True):
        np.testing.assert_array_equal(got, expected)
