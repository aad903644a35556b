"""Whatever is guessed, the answer is the chain's own."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.routing.routes import as_route
from hadskip_export.runtime.routers import CappedRouter, ForcedRouter, GateRouter
from hadskip_export.runtime.speculation import Speculation
from tests.runtime import pieces
from tests.runtime.test_chain import drawn_routes, layouts, salts, thresholds


def guess(salts: list[int], route: tuple[int, ...]) -> pieces.Counting:
    """The route's layers in one piece, and what each gate makes of the state it sees."""

    def run(input_ids, token_type_ids, attention_mask):
        states, margins = [pieces.embeddings(input_ids, token_type_ids)], []
        for index, salt in enumerate(salts):
            margins.append(pieces.gate(salt)(states[-1], attention_mask))
            if index + 1 in route:
                states.append(pieces.layer(index)(states[-1], attention_mask))
        return pieces.head(states[-1]), np.stack(margins, axis=1), *states

    return pieces.Counting(run)


def speculation(salts: list[int], route: tuple[int, ...], layout: str = "separate") -> Speculation:
    chain = pieces.chain(salts, layout)
    chain = replace(chain, embeddings=pieces.Counting(chain.embeddings))
    return Speculation(chain, guess(salts, route), route)


routes = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9), salts, thresholds, routes, st.integers(0, 1000), layouts)
def test_any_guess_gives_what_the_plain_loop_gives(length, salts, threshold, guessed, seed, layout):
    batch = pieces.ragged([length], seed)
    ours = speculation(salts, as_route(guessed[: len(salts)]), layout)
    logits, found = ours.run(batch, GateRouter(threshold))
    expected_logits, expected_routes = pieces.one_at_a_time(batch, salts, threshold)
    np.testing.assert_array_equal(found, expected_routes)
    np.testing.assert_array_equal(logits, expected_logits)


@settings(max_examples=200, deadline=None)
@given(salts, thresholds, routes, st.integers(0, 1000), st.integers(1, 6), st.booleans(), layouts)
def test_with_any_router(salts, threshold, guessed, seed, most, forced, layout):
    """Caps count what ran before the guess went wrong; forced routes are run whatever was guessed."""
    batch = pieces.ragged([5], seed)
    router = ForcedRouter(drawn_routes(1, len(salts), seed)) if forced else CappedRouter(GateRouter(threshold), most)
    logits, found = speculation(salts, as_route(guessed[: len(salts)]), layout).run(batch, router)
    expected_logits, expected_routes = pieces.chain(salts, layout).run(batch, router)
    np.testing.assert_array_equal(found, expected_routes)
    np.testing.assert_array_equal(logits, expected_logits)


@settings(max_examples=100, deadline=None)
@given(salts, thresholds, st.integers(0, 1000), layouts)
def test_a_right_guess_is_the_only_call(salts, threshold, seed, layout):
    batch = pieces.ragged([5], seed)
    (route,) = pieces.one_at_a_time(batch, salts, threshold)[1]
    ours = speculation(salts, as_route(route), layout)
    ours.run(batch, GateRouter(threshold))
    assert ours.guess.rows == 1
    asked = [*ours.chain.gates, *([] if ours.chain.lookahead is None else [ours.chain.lookahead])]
    assert not sum(piece.rows for piece in (ours.chain.embeddings, *ours.chain.layers.values(), *asked))


@settings(max_examples=100, deadline=None)
@given(salts, thresholds, routes, st.integers(0, 1000))
def test_a_wrong_guess_repeats_no_layer(salts, threshold, guessed, seed):
    """Where it goes wrong the chain goes on; what was right before is not computed again."""
    batch = pieces.ragged([5], seed)
    guessed = guessed[: len(salts)]
    ours = speculation(salts, as_route(guessed))
    (route,) = ours.run(batch, GateRouter(threshold))[1].tolist()
    first = next((i for i, (ran, thought) in enumerate(zip(route, guessed, strict=True)) if ran != thought), len(salts))
    expected = [int(ran and index >= first) for index, ran in enumerate(route)]
    assert [layer.rows for layer in ours.chain.layers.values()] == expected
    assert ours.chain.embeddings.rows == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), salts, thresholds, routes, st.integers(0, 1000))
def test_of_several_inputs_nothing_is_guessed(lengths, salts, threshold, guessed, seed):
    batch = pieces.ragged(lengths, seed)
    ours = speculation(salts, as_route(guessed[: len(salts)]))
    logits, found = ours.run(batch, GateRouter(threshold))
    assert ours.guess.rows == 0
    for got, expected in zip((logits, found), pieces.one_at_a_time(batch, salts, threshold), strict=True):
        np.testing.assert_array_equal(got, expected)
