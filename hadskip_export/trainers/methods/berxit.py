"""BERxiT (Xin et al., EACL 2021): batches teach the last exit and all of them in turn, and an input leaves where its
exit has learned that it is right."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hadskip_export.modeling.exits import ExitKind
from hadskip_export.trainers.methods.early_exit import EarlyExit


@dataclass(frozen=True)
class Berxit(EarlyExit):
    """See `EarlyExit`."""

    kind: ClassVar[ExitKind] = "certain"
    criterion: ClassVar[str] = "uncertainty"

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        """Of the last exit alone in every other batch."""
        weights = torch.ones(num_exits)
        if number % 2 == 0:
            weights[:-1] = 0
        return weights
