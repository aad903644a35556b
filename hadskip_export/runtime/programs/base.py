"""How a loaded model answers a batch: what `Predictor` asks, whatever is behind it."""

from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.tokenization import Batch

# (what the piece does, as a profile calls it; the piece) -> what is called instead
Wrap = Callable[[str, Piece], Piece]


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
