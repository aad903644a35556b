"""Shallow-Deep Networks (Kaya et al. 2019, arXiv:1810.07052): an input leaves where its likeliest class is likely."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hadskip_export.trainers.methods.early_exit import EarlyExit

FIRST = 0.01  # weight that an exit begins with


@dataclass(frozen=True)
class ShallowDeep(EarlyExit):
    """See `EarlyExit`."""

    criterion: ClassVar[str] = "doubt"

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        """Rising through the training to the share of the layers before each; the last exit's is 1."""
        share = torch.arange(1, num_exits + 1) / num_exits
        risen = torch.minimum(share, FIRST + done * share)
        return torch.cat((risen[:-1], torch.ones(1)))
