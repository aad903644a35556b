"""Full BERT: every layer, whatever a policy says. It is what every speedup is measured against, and the kill switch."""

from dataclasses import dataclass, replace

import numpy as np

from hadskip_export.runtime.engines.base import Piece
from hadskip_export.runtime.policies import Policy
from hadskip_export.runtime.programs.base import Wrap
from hadskip_export.runtime.tokenization import Batch


@dataclass(frozen=True)
class Full:
    """See `Program`. `inputs`: names of the `Batch` arrays that the piece takes."""

    piece: Piece
    inputs: tuple[str, ...]
    num_layers: int

    @property
    def warm_up_rows(self) -> tuple[int, ...]:
        return (1,)

    def run(self, batch: Batch, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        logits = self.piece(*(getattr(batch, name) for name in self.inputs))
        return logits, np.ones((len(batch), self.num_layers), bool)

    def wrapped(self, wrap: Wrap) -> "Full":
        return replace(self, piece=wrap("full", self.piece))
