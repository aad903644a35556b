"""FastBERT (Liu et al. 2020, arXiv:2004.02178): the fine-tuned model stays as it is, and exits of attention learn what
its own head says.

In the paper that head is one of attention, too, and the divergence is taken the other way round, of the exits from it.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hadskip_export.modeling.exits import ExitKind
from hadskip_export.trainers.methods.early_exit import EarlyExit, all_but_the_last


@dataclass(frozen=True)
class FastBert(EarlyExit):
    """See `EarlyExit`."""

    kind: ClassVar[ExitKind] = "attention"
    criterion: ClassVar[str] = "normalised-entropy"
    body_learns: ClassVar[bool] = False
    learns_labels: ClassVar[bool] = False

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        return all_but_the_last(num_exits)
