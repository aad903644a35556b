"""PCEE-BERT (Zhang et al., Findings of NAACL 2022): PABEE's training, and an input leaves where two exits in a row are
sure."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hadskip_export.trainers.methods.early_exit import EarlyExit, by_depth


@dataclass(frozen=True)
class Pcee(EarlyExit):
    """See `EarlyExit`."""

    criterion: ClassVar[str] = "patient-entropy"

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        return by_depth(num_exits)
