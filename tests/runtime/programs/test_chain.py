"""The chain against the plainest loop: one input at a time, no padding, no shared batch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.policies import CappedPolicy, GatePolicy, StaticPolicy
from tests.runtime import pieces
from tests.runtime.pieces import CUTS, Patience, cuts, lengths, policies, salts, seeds, thresholds


def gates_at(threshold: float, salts: list[int]) -> GatePolicy:
    return GatePolicy([threshold] * len(salts))


@settings(max_examples=300, deadline=None)
@given(lengths, salts, seeds, cuts, st.booleans(), policies())
def test_a_batch_gives_what_each_input_gives_alone_whatever_the_policy_remembers(
    lengths, salts, seed, cut, every_token, make
):
    batch = pieces.ragged(lengths, seed)
    policy, plain = make(len(lengths), len(salts))
    logits, routes = pieces.chain(salts, cut, every_token).run(batch, policy)
    expected_logits, expected_routes = pieces.one_at_a_time(batch, salts, plain)
    assert routes.dtype == bool
    np.testing.assert_array_equal(routes, expected_routes)
    np.testing.assert_array_equal(logits, expected_logits)


@settings(max_examples=100, deadline=None)
@given(lengths, salts, seeds, cuts, policies())
def test_a_policy_begins_anew_with_every_call(lengths, salts, seed, cut, make):
    """What a call before left in it reaches nobody: neither a second call nor one of other rows in between."""
    chain, batch = pieces.chain(salts, cut), pieces.ragged(lengths, seed)
    policy, _ = make(len(lengths), len(salts))
    first = chain.run(batch, policy)
    for again, expected in zip(chain.run(batch, policy), first, strict=True):
        np.testing.assert_array_equal(again, expected)


@settings(max_examples=100, deadline=None)
@given(lengths, salts, seeds, cuts, thresholds, st.none() | st.integers(1, 4))
def test_what_a_row_remembers_does_not_depend_on_who_shares_the_batch(lengths, salts, seed, cut, threshold, most):
    policy = Patience(threshold) if most is None else CappedPolicy(Patience(threshold), most)
    chain, batch = pieces.chain(salts, cut), pieces.ragged(lengths, seed)
    logits, routes = chain.run(batch, policy)
    order = np.random.default_rng(seed).permutation(len(lengths))
    shuffled = replace(batch, **{name: getattr(batch, name)[order] for name in vars(batch)})
    for again, expected in zip(chain.run(shuffled, policy), (logits, routes), strict=True):
        np.testing.assert_array_equal(again, expected[order])


@pytest.mark.parametrize("cut", CUTS)
def test_patience_ends_a_route_that_the_gates_alone_would_go_on_with(cut: str):
    """Or the tests above would say nothing of it."""
    batch, salts = pieces.ragged([3, 5, 1, 7, 2, 4], 0), [1, 2, 3, 4, 5, 6]
    (_, patient), (_, free) = (
        pieces.chain(salts, cut).run(batch, policy) for policy in (Patience(0.0), gates_at(0.0, salts))
    )
    assert (patient <= free).all() and (patient != free).any()


@settings(max_examples=100, deadline=None)
@given(lengths, salts, thresholds, seeds, cuts)
def test_a_layer_is_given_only_the_rows_that_run_it_and_only_their_length(lengths, salts, threshold, seed, cut):
    batch = pieces.ragged(lengths, seed)
    chain = pieces.chain(salts, cut)
    _, routes = chain.run(batch, gates_at(threshold, salts))
    for layer, ran in zip(chain.layers.values(), routes.T, strict=True):
        expected = [(ran.sum(), max(np.array(lengths)[ran]))] if ran.any() else []
        assert layer.batches == expected


@settings(max_examples=50, deadline=None)
@given(lengths, st.lists(st.booleans(), min_size=1, max_size=6), seeds)
def test_a_static_policy_runs_its_layers_for_every_input(lengths, chosen, seed):
    """Whether the chain has the others or not."""
    batch, policy = pieces.ragged(lengths, seed), StaticPolicy(chosen)
    every = pieces.chain([0] * len(chosen), "none")
    logits, routes = every.run(batch, policy)
    assert (routes == chosen).all()
    assert [layer.rows for layer in every.layers.values()] == [len(lengths) * runs for runs in chosen]
    short = replace(every, layers={index: layer for index, layer in every.layers.items() if chosen[index]})
    for again, expected in zip(short.run(batch, policy), (logits, routes), strict=True):
        np.testing.assert_array_equal(again, expected)
    mask, hidden = batch.attention_mask, pieces.embeddings(batch.input_ids, batch.token_type_ids)
    for index in np.flatnonzero(chosen):
        hidden = pieces.layer(index)(hidden, mask)
    np.testing.assert_array_equal(logits, pieces.head(hidden))


def test_the_arrays_of_a_batch_are_left_as_they_were():
    batch = pieces.ragged([3, 5, 1], 0)
    before = [array.copy() for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)]
    pieces.chain([1, 2, 3]).run(batch, gates_at(0.0, [1, 2, 3]))
    for array, expected in zip((batch.input_ids, batch.attention_mask, batch.token_type_ids), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_embeddings_are_given_the_arrays_they_take():
    """DistilBERT has no token types."""
    seen = []

    def embeddings(*arrays):
        seen.extend(arrays)
        return pieces.embeddings(arrays[0], np.zeros_like(arrays[0]))

    batch = pieces.ragged([2, 4], 0)
    chain = replace(pieces.chain([1]), embeddings=embeddings, embedding_inputs=("input_ids",))
    chain.run(batch, GatePolicy([0.0]))
    assert len(seen) == 1
    assert seen[0] is batch.input_ids


# Who is asked, how often


@settings(max_examples=200, deadline=None)
@given(lengths, salts, seeds, policies())
def test_gates_that_are_engines_of_their_own_are_asked_about_every_row(lengths, salts, seed, make):
    chain = pieces.chain(salts)
    chain.run(pieces.ragged(lengths, seed), make(len(lengths), len(salts))[0])
    assert [gate.rows for gate in chain.gates] == [len(lengths)] * len(salts)


@settings(max_examples=200, deadline=None)
@given(lengths, salts, seeds, policies())
def test_all_gates_are_asked_once_and_then_about_what_a_layer_changed(lengths, salts, seed, make):
    chain = pieces.chain(salts, "all gates")
    _, routes = chain.run(pieces.ragged(lengths, seed), make(len(lengths), len(salts))[0])
    changed = routes[:, :-1]  # nobody asks after the last layer
    assert len(chain.all_gates.batches) == 1 + changed.any(axis=0).sum()
    assert chain.all_gates.rows == len(lengths) + changed.sum()


@settings(max_examples=100, deadline=None)
@given(lengths, salts, seeds, policies())
def test_where_layers_answer_for_gates_these_are_asked_once_beside_them(lengths, salts, seed, make):
    chain = pieces.chain(salts, "fused")
    chain.run(pieces.ragged(lengths, seed), make(len(lengths), len(salts))[0])
    assert chain.all_gates.rows == len(lengths)


@settings(max_examples=50, deadline=None)
@given(lengths, salts, seeds, cuts, policies())
def test_wrapped_it_answers_the_same_and_every_piece_is_called_by_its_name(lengths, salts, seed, cut, make):
    calls = []

    def wrap(name, piece):
        return lambda *inputs: calls.append((name, len(inputs[0]))) or piece(*inputs)

    chain, batch = pieces.chain(salts, cut), pieces.ragged(lengths, seed)
    policy, _ = make(len(lengths), len(salts))
    expected = chain.run(batch, policy)
    before = {name: piece.batches.copy() for name, piece in named(chain).items()}
    for again, answer in zip(chain.wrapped(wrap).run(batch, policy), expected, strict=True):
        np.testing.assert_array_equal(again, answer)
    for name, piece in named(chain).items():  # which were called through the wrapping, as often as without it
        assert [rows for called, rows in calls if called == name] == [rows for rows, _ in before[name]]
        assert piece.batches == 2 * before[name]
    assert {name for name, _ in calls} <= set(named(chain))


def named(chain) -> dict[str, pieces.Counting]:
    found = {"embeddings": chain.embeddings, "head": chain.head}
    found |= {f"layer_{index + 1:02d}": layer for index, layer in chain.layers.items()}
    found |= {f"gate_{index + 1:02d}": gate for index, gate in enumerate(chain.gates)}
    return found if chain.all_gates is None else found | {"gates": chain.all_gates}
