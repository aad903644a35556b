"""DeeBERT (Xin et al. 2020, arXiv:2004.12993): the fine-tuned model stays as it is, and the exits learn beside it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hadskip_export.trainers.methods.early_exit import EarlyExit, all_but_the_last


@dataclass(frozen=True)
class DeeBert(EarlyExit):
    """See `EarlyExit`."""

    body_learns: ClassVar[bool] = False

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        return all_but_the_last(num_exits)
