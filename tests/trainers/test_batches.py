"""Every row comes once, with its own label; lengths are grouped; the seed decides the order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.trainers.batches import (
    Dataset,
    TrainingBatch,
    count_batches,
    encode,
    ordered_batches,
    shuffled_batches,
)
from tests.trainers.datasets import random_dataset


def check(batches: list[TrainingBatch], data: Dataset, batch_size: int) -> None:
    """Every row once, no batch too large, and each row with its own ids, mask, token types and label."""
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(data)))
    assert all(1 <= len(batch.rows) <= batch_size for batch in batches)
    assert len(batches) == count_batches(data, batch_size)
    for batch in batches:
        ids, mask, types = batch.inputs
        assert ids.dtype == mask.dtype == types.dtype == batch.targets.dtype == torch.int64
        assert torch.equal(batch.attention_mask, mask)
        assert ids.shape == (len(batch.rows), max(len(data.encoded[row]) for row in batch.rows))
        for place, row in enumerate(batch.rows):
            encoded, length = data.encoded[row], len(data.encoded[row])
            for array, expected in ((ids, encoded.ids), (types, encoded.type_ids)):
                assert array[place, :length].tolist() == expected.tolist()
            assert mask[place].tolist() == [1] * length + [0] * (mask.shape[1] - length)
            assert batch.targets[place] == data.targets[row]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_row_comes_exactly_once(count, batch_size, seed):
    data = random_dataset(count, seed % 7)
    check(list(shuffled_batches(data, batch_size, seed)), data, batch_size)
    check(list(ordered_batches(data, batch_size)), data, batch_size)


def test_rows_beyond_one_window_of_sorted_lengths_come_exactly_once():
    data = random_dataset(500)
    check(list(shuffled_batches(data, 4, 0)), data, 4)


def order(data: Dataset, seed: int) -> list[list[int]]:
    return [batch.rows.tolist() for batch in shuffled_batches(data, 8, seed)]


def test_the_seed_decides_the_order():
    data = random_dataset(200)
    assert order(data, 3) == order(data, 3) != order(data, 4)


def test_the_order_is_random_and_not_by_length():
    data = random_dataset(200)
    lengths = [len(data.encoded[batch[0]]) for batch in order(data, 0)]
    assert lengths != sorted(lengths)
    assert [set(batch) for batch in order(data, 0)] != [set(batch) for batch in order(data, 1)]


def padding(groups: list[list[int]], data: Dataset) -> float:
    """Share of padded positions."""
    lengths = [[len(data.encoded[row]) for row in group] for group in groups]
    return 1 - sum(map(sum, lengths)) / sum(len(group) * max(group) for group in lengths)


def test_batches_of_similar_length_have_far_less_padding_than_random_ones():
    data = random_dataset(1000)
    shuffled = np.random.default_rng(0).permutation(1000).reshape(-1, 8).tolist()
    assert padding(order(data, 0), data) < padding(shuffled, data) / 3


def test_ordered_batches_are_by_length():
    data = random_dataset(100)
    lengths = [len(data.encoded[row]) for batch in ordered_batches(data, 7) for row in batch.rows]
    assert lengths == sorted(lengths)


@given(st.lists(st.integers(0, 19), max_size=30))
def test_a_subset_keeps_rows_together(rows):
    data = random_dataset(20)
    part = data.subset(np.array(rows, int))
    assert len(part) == len(rows)
    assert part.encoded == [data.encoded[row] for row in rows] and part.targets.tolist() == data.targets[rows].tolist()


@pytest.mark.parametrize("max_length", [8, 32])
def test_encoding_keeps_order_and_cuts_to_the_maximum(max_length, run_folder):
    tokenizer = Tokenizer(run_folder / "tokenizer" / "tokenizer.json", max_length)
    texts = ["good", "the film was not very good and the plot of it dull", ("good", "bad film")]
    data = encode(tokenizer, texts, np.array([1, 0, 1]))
    assert len(data) == 3
    assert [len(encoded) for encoded in data.encoded] == [3, min(14, max_length), 6]
    assert data.encoded[2].type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.encoded[1].truncated == (max_length == 8)
