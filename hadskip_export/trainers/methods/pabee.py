"""PABEE (Zhou et al. 2020, arXiv:2006.04152): deeper exits weigh more, and an input leaves where several in a row have
agreed. Its mean layers come in as many steps as there are layers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hadskip_export.modeling.exits import ExitKind
from hadskip_export.trainers.methods.early_exit import EarlyExit, by_depth


@dataclass(frozen=True)
class Pabee(EarlyExit):
    """See `EarlyExit`."""

    kind: ClassVar[ExitKind] = "linear"
    criterion: ClassVar[str] = "patience"

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        """`l / sum(l)`"""
        return by_depth(num_exits)
