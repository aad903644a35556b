"""Task metrics, by the names that recipes, summaries and manifests use. All take class indices, int [n] both."""

from collections.abc import Callable

import numpy as np


def accuracy(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Share of equal labels."""
    return float(np.mean(predicted == expected))


def f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    """F1 of class 1, which is GLUE's positive one; 0 where neither side has any."""
    both = np.sum((predicted == 1) & (expected == 1))
    sides = np.sum(predicted == 1) + np.sum(expected == 1)
    return float(2 * both / sides) if sides else 0.0


def matthews(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Matthews' correlation, of any number of classes; 0 where one side is all one class and it is undefined."""
    classes = np.arange(1 + max(predicted.max(), expected.max()))
    one_hot = (side[:, None] == classes for side in (predicted, expected))
    ours, theirs = (side - side.mean(axis=0) for side in one_hot)
    scale = np.sqrt(np.sum(ours * ours) * np.sum(theirs * theirs))
    return float(np.sum(ours * theirs) / scale) if scale else 0.0


AGREEMENT = "agreement"  # accuracy where the teacher's labels stand in for those that the texts lack
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    AGREEMENT: accuracy,
}
