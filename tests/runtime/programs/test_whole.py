"""One piece that is given the terms of a policy answers as the chain does under that policy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.policies import GatePolicy
from hadskip_export.runtime.programs.whole import Whole
from tests.runtime import pieces
from tests.runtime.pieces import Counting, cuts, policies, salts, seeds

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def whole(salts: list[int]) -> Counting:
    """What such a piece promises, by the plainest loop; it keeps what it was given."""

    def run(*inputs):
        assert [array.dtype for array in inputs[3:]] == [np.float32, np.int64]
        assert {len(array) for array in inputs} == {len(inputs[0])} and inputs[3].shape[1:] == (len(salts),)
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

    return Counting(run)


@pytest.mark.parametrize("pieces_for", ["all calls", "one and several"])
@settings(max_examples=200, deadline=None)
@given(lengths, salts, seeds, cuts, policies(remembering=False))
def test_a_batch_is_one_call_and_takes_the_routes_of_the_policy(pieces_for, lengths, salts, seed, cut, make):
    batch, (policy, plain) = pieces.ragged(lengths, seed), make(len(lengths), len(salts))
    several = whole(salts)
    alone = None if pieces_for == "all calls" else whole(salts)
    logits, routes = Whole(several, alone, INPUTS, len(salts)).run(batch, policy)
    assert routes.dtype == bool
    asked, other = (alone, several) if alone and len(lengths) == 1 else (several, alone)
    assert len(asked.batches) == 1 and not (other and other.batches)
    for expected in (pieces.chain(salts, cut).run(batch, policy), pieces.one_at_a_time(batch, salts, plain)):
        for got, wanted in zip((logits, routes), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_sizes_to_warm_up_are_those_that_call_every_piece():
    several, alone = whole([1, 2]), whole([1, 2])
    for program, made in (
        (Whole(several, None, INPUTS, 2), [several]),
        (Whole(several, alone, INPUTS, 2), [several, alone]),
    ):
        for piece in made:
            piece.batches.clear()
        for rows in program.warm_up_rows:
            program.run(pieces.ragged([3] * rows, 0), GatePolicy([0.0, 0.0]))
        assert all(len(piece.batches) == 1 for piece in made)


@pytest.mark.parametrize(("rows", "name"), [(1, "whole, alone"), (3, "whole")])
def test_wrapped_it_answers_the_same_and_its_piece_is_called_by_its_name(rows: int, name: str):
    calls = []

    def wrap(name, piece):
        return lambda *inputs: calls.append(name) or piece(*inputs)

    batch, policy = pieces.ragged([4] * rows, 0), GatePolicy([0.0, 0.5])
    program = Whole(whole([1, 2]), whole([1, 2]), INPUTS, 2)
    for again, expected in zip(program.wrapped(wrap).run(batch, policy), program.run(batch, policy), strict=True):
        np.testing.assert_array_equal(again, expected)
    assert calls == [name]
