"""What a seed may be."""

from hadskip_export.support.errors import RecipeError

LARGEST = 2**63 - 1  # torch takes twice as much, and stages add to it


def check_seed(seed: int) -> None:
    """
    Raises:
        RecipeError: numpy or torch would not take it.
    """
    if not 0 <= seed <= LARGEST:
        raise RecipeError(f"--seed {seed}: expected 0 to {LARGEST}")
