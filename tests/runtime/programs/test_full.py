"""Full BERT asks no policy."""

import numpy as np
import pytest

from hadskip_export.runtime.policies import CappedPolicy, ForcedPolicy, GatePolicy
from hadskip_export.runtime.programs.full import Full
from tests.runtime import pieces
from tests.runtime.pieces import Counting


def full(*inputs: np.ndarray) -> np.ndarray:
    """Of the two inputs it is given, in their order."""
    types, ids = inputs
    return pieces.head(pieces.embeddings(ids, types))


@pytest.mark.parametrize(
    "policy", [GatePolicy([1e9] * 4), CappedPolicy(GatePolicy([0.0] * 4), 1), ForcedPolicy(np.zeros((3, 4), bool))]
)
def test_every_layer_runs_whatever_a_policy_says(policy):
    batch, piece = pieces.ragged([4, 1, 7], 0), Counting(full)
    logits, routes = Full(piece, ("token_type_ids", "input_ids"), 4).run(batch, policy)
    assert piece.batches == [(3, 7)]
    np.testing.assert_array_equal(routes, np.ones((3, 4), bool))
    assert routes.dtype == bool
    np.testing.assert_array_equal(logits, full(batch.token_type_ids, batch.input_ids))


def test_one_input_warms_it_up_and_wrapped_it_answers_the_same():
    calls = []
    program = Full(full, ("token_type_ids", "input_ids"), 4)
    assert program.warm_up_rows == (1,)
    wrapped = program.wrapped(lambda name, piece: lambda *inputs: calls.append(name) or piece(*inputs))
    batch, policy = pieces.ragged([4, 2], 0), GatePolicy([0.0] * 4)
    np.testing.assert_array_equal(wrapped.run(batch, policy)[0], program.run(batch, policy)[0])
    assert calls == ["full"]
