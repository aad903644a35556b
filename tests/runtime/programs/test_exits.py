"""Exits against the plainest loop: one input at a time, no padding, no shared batch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.routing.criteria import CRITERIA, UNCERTAINTY
from hadskip_export.routing.routes import FIXED_MARGIN
from hadskip_export.runtime.policies import CappedPolicy, ForcedPolicy, GatePolicy
from hadskip_export.runtime.programs.exits import Exits
from hadskip_export.runtime.tokenization import Batch
from tests.runtime import pieces
from tests.runtime.pieces import Counting, first_token, lengths, seeds, total

CLASSES = 3
layer_counts, criteria = st.integers(1, 6), st.sampled_from(sorted(CRITERIA))
quantiles = st.sampled_from([-0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1])


def leave(index: int, takes_mask: bool, more: int = 0):
    """An exit whose answers are small whole numbers: of all real tokens, or of the first one."""

    def answers(hidden: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        seen = total(hidden, mask) if takes_mask else hidden[:, 0].sum(axis=1)
        numbers = [(seen * (3 + column) + 5 * index + column) % (4 + column) for column in range(CLASSES + more)]
        return np.stack(numbers, axis=1).astype(np.float32)

    return answers


def program(num_layers: int, criterion: str, takes_mask: bool = False, fused: bool = False) -> Exits:
    """Every piece counts."""
    more = CRITERIA[criterion].beside_logits
    exits = [leave(index, takes_mask, more) for index in range(num_layers - 1)] + [leave(num_layers - 1, False)]
    takes = [takes_mask] * (num_layers - 1) + [False]
    made = [pieces.layer(index) for index in range(num_layers)]
    made[-1] = first_token(made[-1])

    def with_exit(index: int):
        def run(hidden: np.ndarray, mask: np.ndarray):
            after = made[index](hidden, mask)
            return after, exits[index](after, mask) if takes[index] else exits[index](after)

        return run

    layers = [with_exit(index) if fused and index + 1 < num_layers else made[index] for index in range(num_layers)]
    return Exits(
        embeddings=Counting(pieces.embeddings), layers={index: Counting(one) for index, one in enumerate(layers)},
        exits=[Counting(one) for one in exits], criterion=CRITERIA[criterion],
        embedding_inputs=("input_ids", "token_type_ids"), exits_take_mask=takes, num_labels=CLASSES,
    )  # fmt: skip


def alone(batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    length = int(batch.attention_mask[row].sum())
    return tuple(
        array[row : row + 1, :length] for array in (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    )


def plain(batch: Batch, num_layers: int, criterion: str, takes_mask: bool, stop) -> tuple[np.ndarray, np.ndarray]:
    """Logits and routes. `stop`: (row, layers run, margin of the last of them) -> whether the row leaves."""
    logits, routes, more = [], [], CRITERIA[criterion].beside_logits
    for row in range(len(batch)):
        ids, mask, types = alone(batch, row)
        hidden, seen = pieces.embeddings(ids, types), []
        for index in range(num_layers):
            hidden = pieces.layer(index)(hidden, mask)
            last = index == num_layers - 1
            seen.append(leave(index, takes_mask and not last, 0 if last else more)(hidden, mask))
            if last or stop(row, index + 1, CRITERIA[criterion].margins(seen)[0, -1]):
                break
        logits.append(seen[-1][0, :CLASSES])
        routes.append(np.arange(num_layers) < len(seen))
    return np.array(logits, np.float32), np.array(routes)


def margins_of(batch: Batch, num_layers: int, criterion: str, takes_mask: bool) -> list[float]:
    """All that may be met."""
    found: list[float] = [0.0]

    def never(row: int, ran: int, margin: float) -> bool:
        found.append(float(margin))
        return False

    plain(batch, num_layers, criterion, takes_mask, never)
    return found


@settings(max_examples=300, deadline=None)
@given(lengths, layer_counts, seeds, criteria, quantiles, st.booleans(), st.booleans())
def test_a_batch_gives_what_each_input_gives_alone(lengths, num_layers, seed, criterion, quantile, takes_mask, fused):
    batch = pieces.ragged(lengths, seed)
    met = margins_of(batch, num_layers, criterion, takes_mask)
    threshold = np.float32(np.quantile(met, min(1, max(0, quantile))) + (quantile - 0.5) / 1e3)
    expected = plain(batch, num_layers, criterion, takes_mask, lambda row, ran, margin: margin <= threshold)
    got = program(num_layers, criterion, takes_mask, fused).run(batch, GatePolicy([threshold] * num_layers))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert got[0].dtype == np.float32 and got[1].dtype == bool


@settings(max_examples=100, deadline=None)
@given(lengths, layer_counts, seeds, st.booleans())
def test_rows_that_are_told_when_to_leave_do(lengths, num_layers, seed, takes_mask):
    batch = pieces.ragged(lengths, seed)
    leaves = np.random.default_rng(seed).integers(1, num_layers + 1, len(lengths))
    routes = np.arange(num_layers) < leaves[:, None]
    expected = plain(batch, num_layers, "doubt", takes_mask, lambda row, ran, margin: ran == leaves[row])
    got = program(num_layers, "doubt", takes_mask).run(batch, ForcedPolicy(routes))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(lengths, layer_counts, seeds, criteria, st.integers(1, 6))
def test_none_runs_more_layers_than_it_may(lengths, num_layers, seed, criterion, most):
    batch = pieces.ragged(lengths, seed)
    policy = CappedPolicy(GatePolicy([0.3] * num_layers), most)
    expected = plain(
        batch, num_layers, criterion, False, lambda row, ran, margin: margin <= np.float32(0.3) or ran >= most
    )
    for ours, theirs in zip(program(num_layers, criterion).run(batch, policy), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(lengths, layer_counts, seeds, criteria, st.booleans())
def test_who_has_left_is_in_no_batch_any_more_and_nobody_else_s_padding_stays(
    lengths, num_layers, seed, criterion, fused
):
    batch, made = pieces.ragged(lengths, seed), program(num_layers, criterion, fused=fused)
    _, routes = made.run(batch, GatePolicy([0.4] * num_layers))
    for layer, ran in zip(made.layers.values(), routes.T, strict=True):
        assert layer.batches == ([(ran.sum(), max(np.array(lengths)[ran]))] if ran.any() else [])
    asked = [] if fused else routes[:, :-1].sum(axis=0).tolist()
    assert [one.rows for one in made.exits[: len(asked)]] == asked
    assert made.exits[-1].rows == routes[:, -1].sum()


@settings(max_examples=50, deadline=None)
@given(lengths, layer_counts, seeds, st.sampled_from(["patience", "patient-entropy"]))
def test_what_a_row_remembers_does_not_depend_on_who_shares_the_batch(lengths, num_layers, seed, criterion):
    made, batch, policy = program(num_layers, criterion), pieces.ragged(lengths, seed), GatePolicy([0.5] * num_layers)
    first = made.run(batch, policy)
    order = np.random.default_rng(seed).permutation(len(lengths))
    shuffled = replace(batch, **{name: getattr(batch, name)[order] for name in vars(batch)})
    for again, expected in zip(made.run(shuffled, policy), first, strict=True):
        np.testing.assert_array_equal(again, expected[order])


def test_patience_of_one_leaves_after_the_second_layer_at_the_earliest():
    """The first exit has nobody to agree with; with more patience than there are layers, it is the full model."""
    batch, num_layers = pieces.ragged([3, 1, 2], 0), 5
    alike = [lambda hidden: np.eye(3, dtype=np.float32)[np.zeros(len(hidden), int)]] * num_layers
    made = replace(program(num_layers, "patience"), exits=alike)
    for patience, layers in ((1, 2), (2, 3), (num_layers - 1, num_layers), (num_layers, num_layers)):
        threshold = 1 / (1 + patience) + 1e-3
        _, routes = made.run(batch, GatePolicy([threshold] * num_layers))
        assert (routes.sum(axis=1) == layers).all()


@pytest.mark.parametrize(("threshold", "layers"), [(FIXED_MARGIN + 1, 1), (-1.0, 4)])
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_at_the_ends_of_its_range_all_run_the_first_layer_or_all_of_them(criterion, threshold, layers):
    batch = pieces.ragged([1, 5, 2], 3)
    _, routes = program(4, criterion).run(batch, GatePolicy([threshold] * 4))
    assert (routes.sum(axis=1) == layers).all()


def test_an_exit_of_other_answers_than_the_criterion_reads_is_not_read():
    made = replace(program(3, "entropy"), exits=program(3, UNCERTAINTY).exits)
    with pytest.raises(ValueError, match="4 answers, not 3"):
        made.run(pieces.ragged([2, 3], 0), GatePolicy([0.0] * 3))


def test_its_pieces_are_wrapped_by_their_names():
    names = []

    def note(name, piece):
        names.append(name)
        return piece

    made = program(3, "entropy")
    batch, policy = pieces.ragged([2, 3], 0), GatePolicy([0.2] * 3)
    again = made.wrapped(note)
    assert names == ["embeddings", "layer_01", "layer_02", "layer_03", "exit_01", "exit_02", "head"]
    for ours, theirs in zip(again.run(batch, policy), made.run(batch, policy), strict=True):
        np.testing.assert_array_equal(ours, theirs)
