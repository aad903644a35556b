"""Tokenised inputs made of random ids, for the random models of `tests.modeling.random_models`."""

import numpy as np
import torch
from torch import Tensor

from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.runtime.tokenization import Encoded
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.objective import Objective
from tests.modeling.random_models import CONFIG

PROBLEM = Problem(SINGLE, CONFIG.labels)
OBJECTIVE = Objective(SINGLE)


def random_dataset(count: int, seed: int = 0, longest: int = CONFIG.max_positions) -> Dataset:
    random = np.random.default_rng(seed)
    encoded = []
    for length in random.integers(1, longest + 1, size=count):
        ids, types = random.integers(CONFIG.vocab_size, size=length), random.integers(2, size=length)
        encoded.append(Encoded(ids, types, False))
    return Dataset(encoded, random.integers(len(CONFIG.labels), size=count), np.zeros(count, np.int64))


def alone(data: Dataset, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """One input as a batch of its own, without padding: input_ids, attention_mask, token_type_ids."""
    ids, types = (torch.tensor(values)[None] for values in (data.encoded[row].ids, data.encoded[row].type_ids))
    return ids, torch.ones_like(ids), types
