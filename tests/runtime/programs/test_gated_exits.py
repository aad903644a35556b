"""Exits with gates against the plainest loop: one input at a time, no padding, no shared batch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.runtime.policies import CappedPolicy, ForcedPolicy, GatePolicy
from hadskip_export.runtime.programs.gated_exits import GatedExits
from hadskip_export.runtime.tokenization import Batch
from tests.runtime import pieces
from tests.runtime.pieces import Counting, lengths, seeds
from tests.runtime.programs.test_exits import CLASSES, alone, criteria, layer_counts, leave, program, quantiles


def gated(num_layers: int, criterion: str, salt: int, fused: bool = False) -> GatedExits:
    """Every piece counts."""
    gates = [Counting(pieces.gate(salt + index)) for index in range(1, num_layers)]
    return GatedExits(**vars(program(num_layers, criterion, fused=fused)), gates=gates)


def plain(batch: Batch, num_layers: int, criterion: str, salt: int, goes_on) -> tuple[np.ndarray, np.ndarray, list]:
    """Logits, routes, and how many gates each row asked. `goes_on`: (row, layer's index from 0, layers run, margin of
    the last exit, the gate's margin) -> whether the layer runs; None if the row leaves."""
    logits, routes, asked, more = [], [], [], CRITERIA[criterion].beside_logits
    for row in range(len(batch)):
        ids, mask, types = alone(batch, row)
        hidden, seen, route, gates = pieces.embeddings(ids, types), [], [], 0
        for index in range(num_layers):
            if index:
                margin = np.float32(CRITERIA[criterion].margins(seen)[0, -1])
                runs = goes_on(row, index, len(route), margin, pieces.gate(salt + index)(hidden, mask)[0])
                if runs is None:
                    break
                gates += 1
                if not runs:
                    continue
            hidden = pieces.layer(index)(hidden, mask)
            last = index == num_layers - 1
            seen.append(leave(index, False, 0 if last else more)(hidden, mask))
            route.append(index)
        logits.append(seen[-1][0, :CLASSES])
        routes.append(np.isin(np.arange(num_layers), route))
        asked.append(gates)
    return np.array(logits, np.float32), np.array(routes), asked


@settings(max_examples=300, deadline=None)
@given(lengths, layer_counts, seeds, criteria, quantiles, st.integers(0, 20), st.booleans())
def test_a_batch_gives_what_each_input_gives_alone(lengths, num_layers, seed, criterion, quantile, salt, fused):
    batch, threshold = pieces.ragged(lengths, seed), np.float32(quantile)
    expected = plain(
        batch,
        num_layers,
        criterion,
        salt,
        lambda row, index, ran, margin, gate: gate > 0 if margin > threshold else None,
    )
    made = gated(num_layers, criterion, salt, fused)
    got = made.run(batch, GatePolicy([threshold] * num_layers))
    for ours, theirs in zip(got, expected, strict=False):
        np.testing.assert_array_equal(ours, theirs)
    assert got[0].dtype == np.float32 and got[1].dtype == bool
    assert sum(gate.rows for gate in made.gates) == sum(expected[2])  # whoever has left asks none
    for layer, ran in zip(made.layers.values(), got[1].T, strict=True):  # nor is anybody else's padding there
        assert layer.batches == ([(ran.sum(), max(np.array(lengths)[ran]))] if ran.any() else [])


@settings(max_examples=100, deadline=None)
@given(lengths, layer_counts, seeds, st.integers(0, 20))
def test_rows_run_what_they_are_told_whatever_gates_and_exits_say(lengths, num_layers, seed, salt):
    batch = pieces.ragged(lengths, seed)
    routes = np.random.default_rng(seed).random((len(lengths), num_layers)) < 0.5
    routes[:, 0] = True
    expected = plain(batch, num_layers, "doubt", salt, lambda row, index, ran, margin, gate: routes[row, index])
    for ours, theirs in zip(gated(num_layers, "doubt", salt).run(batch, ForcedPolicy(routes)), expected, strict=False):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(lengths, layer_counts, seeds, criteria, st.integers(0, 20), st.integers(1, 6))
def test_none_runs_more_layers_than_it_may(lengths, num_layers, seed, criterion, salt, most):
    batch, policy = pieces.ragged(lengths, seed), CappedPolicy(GatePolicy([0.3] * num_layers), most)

    def goes_on(row, index, ran, margin, gate):
        return gate > 0 and ran < most if margin > np.float32(0.3) else None

    expected = plain(batch, num_layers, criterion, salt, goes_on)
    for ours, theirs in zip(gated(num_layers, criterion, salt).run(batch, policy), expected, strict=False):
        np.testing.assert_array_equal(ours, theirs)
