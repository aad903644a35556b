"""BranchyNet (Teerapittayanon et al. 2016, arXiv:1709.01686): all exits learn together, and an input leaves where the
entropy of its classes is low."""

from dataclasses import dataclass

from hadskip_export.trainers.methods.early_exit import EarlyExit


@dataclass(frozen=True)
class BranchyNet(EarlyExit):
    """See `EarlyExit`."""
