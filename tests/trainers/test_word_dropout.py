"""Texts with words left out, by what stays of them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.runtime.tokenization import Encoded
from hadskip_export.trainers.batches import Dataset, TrainingBatch, ordered_batches
from hadskip_export.trainers.word_dropout import drop_words
from tests.modeling.random_models import CONFIG, random_classifier

CLS, SEP = 1, 2


def batch_of(lengths: list[int], seed: int = 0) -> TrainingBatch:
    """Pairs of texts, `[CLS] a [SEP] b [SEP]`; words of a batch are all different, so that each is known again."""
    random = np.random.default_rng(seed)
    encoded, word = [], 3
    for length in lengths:
        ids = np.arange(word, word + length)
        word += length
        first = int(random.integers(length + 1))
        ids = np.array([CLS, *ids[:first], SEP, *ids[first:], SEP])
        types = np.array([0] * (first + 2) + [1] * (length - first + 1))
        encoded.append(Encoded(ids, types, False))
    return next(ordered_batches(Dataset(encoded, np.arange(len(lengths)), np.arange(len(lengths))), len(lengths)))


def real(batch: TrainingBatch, row: int) -> list[tuple[int, int]]:
    ids, mask, types = (values[row].tolist() for values in batch.inputs)
    return [(word, kind) for word, kind, there in zip(ids, types, mask, strict=True) if there]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 1000))
def test_half_of_the_texts_lose_words_in_their_order_and_never_a_separator(lengths, seed):
    torch.manual_seed(seed)
    batch = batch_of(lengths, seed)
    dropped = drop_words(batch)
    assert dropped.altered is not None and int(dropped.altered.sum()) == len(lengths) // 2
    for row, altered in enumerate(dropped.altered.tolist()):
        before, after = real(batch, row), real(dropped, row)
        if altered:
            left = iter(before)
            assert all(token in left for token in after)  # a subsequence
            assert [token for token in before if token[0] in (CLS, SEP)] == [t for t in after if t[0] in (CLS, SEP)]
        else:
            assert after == before
    ids, mask, types = dropped.inputs
    assert mask.sum(dim=1).max() == mask.shape[1]  # no wider than it has to be
    assert (mask.diff(dim=1) <= 0).all() and not ids[mask == 0].any() and not types[mask == 0].any()
    assert dropped.targets is batch.targets and (dropped.rows == batch.rows).all()


def test_a_text_loses_a_twentieth_to_three_tenths_of_its_words():
    torch.manual_seed(0)
    lost = []
    for seed in range(40):
        batch = batch_of([400] * 8, seed)
        dropped = drop_words(batch)
        left = (dropped.inputs[1].sum(dim=1) - 3)[dropped.altered]
        lost += (1 - left / 400).tolist()
    assert len(lost) == 160 and min(lost) > 0.05 - 0.044 and max(lost) < 0.3 + 0.092  # four standard deviations
    assert abs(np.mean(lost) - 0.175) < 0.02 and np.std(lost) > 0.05  # not one share for all


def test_torchs_generator_says_which():
    batch, found = batch_of([20] * 8), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(drop_words(batch).inputs[0].tolist())
    assert found[0] == found[1] != found[2]


@torch.no_grad()
def test_a_model_reads_what_is_left_as_it_would_by_itself():
    torch.manual_seed(0)
    model: Classifier = random_classifier()
    batch = batch_of([5, 3, 1, 4])
    ids, mask, types = batch.inputs
    dropped = drop_words(TrainingBatch((ids % CONFIG.vocab_size, mask, types), None, batch.rows))
    logits = model(*dropped.inputs).logits
    for row in range(4):
        words, kinds = zip(*real(dropped, row), strict=True)
        tokens = torch.tensor([words]), torch.ones(1, len(words), dtype=torch.int64), torch.tensor([kinds])
        torch.testing.assert_close(logits[row : row + 1], model(*tokens).logits, atol=1e-5, rtol=0)
