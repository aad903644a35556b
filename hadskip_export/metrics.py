"""Task metrics, by the names that recipes, summaries and manifests use."""

from collections.abc import Callable

import numpy as np


def accuracy(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Share of equal labels; int [n] both."""
    return float(np.mean(predicted == expected))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy}
