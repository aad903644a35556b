"""How a loaded model answers a batch: what `Predictor` asks, whatever is behind it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.tokenization import Batch

# (what the piece does, as a profile calls it; the piece) -> what is called instead
Wrap = Callable[[str, Piece], Piece]


def some_of(hidden: Any, mask: np.ndarray, rows: Sequence[int] | np.ndarray) -> tuple[Any, np.ndarray]:
    """Rows of hidden_states [b, s, H] and attention_mask [b, s], without the padding that only the others need."""
    length = mask[rows].sum(axis=1).max()
    return hidden[rows, :length], mask[rows, :length]


class Program(Protocol):
    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        """Sizes of batches which between them call every piece."""
        ...

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Runs `batch` as `policy` routes it.

        Returns:
            logits float32 [b, classes] and routes bool [b, L], true where the layer ran.
        """
        ...

    def wrapped(self, wrap: Wrap) -> Self:
        """The same program of wrapped pieces, for measurements."""
        ...
