"""Tokenised examples and the batches made of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hadskip_export.data.problems import groups_of
from hadskip_export.runtime.tokenization import Encoded, Text, Tokenizer, pad

BATCHES_PER_WINDOW = 32  # lengths are sorted within windows of so many batches: little padding, still random


@dataclass(frozen=True)
class Dataset:
    """Tokenised inputs.

    Args:
        targets: as `Problem.targets` has them; None of texts without labels.
        groups: see `groups_of`.
    """

    encoded: list[Encoded]
    targets: np.ndarray | None
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.encoded)

    def subset(self, rows: np.ndarray) -> "Dataset":
        targets = None if self.targets is None else self.targets[rows]
        return Dataset([self.encoded[row] for row in rows], targets, self.groups[rows])


def encode(tokenizer: Tokenizer, texts: list[Text], targets: np.ndarray | None) -> Dataset:
    """Tokenises the inputs once, before training."""
    return Dataset(tokenizer.encode(texts), targets, groups_of(texts))


@dataclass(frozen=True)
class TrainingBatch:
    """`inputs`: input_ids, attention_mask, token_type_ids, int64 [b, s]; `targets`: as the dataset's, [b] or [b,
    labels]; `rows`: where they came from in the dataset, int [b]; `altered`: whose text is no longer that of the
    dataset, so that its target says nothing of them, bool [b]; None where all are; `share`: what part of a step's rows
    these are."""

    inputs: tuple[Tensor, Tensor, Tensor]
    targets: Tensor | None
    rows: np.ndarray
    altered: Tensor | None = None
    share: float = 1.0

    @property
    def attention_mask(self) -> Tensor:
        return self.inputs[1]

    def part(self, rows: Tensor) -> "TrainingBatch":
        """Some of the rows, int64 [m], no wider than they have to be."""
        width = int(self.attention_mask[rows].sum(dim=1).max())
        ids, mask, types = (values[rows, :width] for values in self.inputs)
        targets, altered = (None if values is None else values[rows] for values in (self.targets, self.altered))
        share = self.share * len(rows) / len(self.rows)
        return TrainingBatch((ids, mask, types), targets, self.rows[rows.numpy()], altered, share)


def count_batches(data: Dataset, batch_size: int) -> int:
    return -(-len(data) // batch_size)


def shuffled_batches(data: Dataset, batch_size: int, seed: int, device: str = "cpu") -> Iterator[TrainingBatch]:
    """Every example once, in random batches of inputs of similar length."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(data))
    window = batch_size * BATCHES_PER_WINDOW
    chunks = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort([len(data.encoded[row]) for row in rows], kind="stable")]
        chunks += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    for index in random.permutation(len(chunks)):
        yield _batch(data, chunks[index], device)


def ordered_batches(data: Dataset, batch_size: int = 64, device: str = "cpu") -> Iterator[TrainingBatch]:
    """Every example once, by length; `rows` says where each belongs."""
    order = np.argsort([len(encoded) for encoded in data.encoded], kind="stable")
    for start in range(0, len(order), batch_size):
        yield _batch(data, order[start : start + batch_size], device)


def _batch(data: Dataset, rows: np.ndarray, device: str) -> TrainingBatch:
    padded = pad([data.encoded[row] for row in rows])
    arrays = (padded.input_ids, padded.attention_mask, padded.token_type_ids)
    ids, mask, types = (torch.from_numpy(array).to(device) for array in arrays)
    targets = None if data.targets is None else torch.from_numpy(data.targets[rows]).to(device)
    return TrainingBatch((ids, mask, types), targets, rows)
