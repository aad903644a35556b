"""Sampled gates meet the budget in training; hard gates can miss it by up to a layer. A threshold mends that."""

import numpy as np

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.thresholds import HardRoutes, find_threshold
from hadskip_export.support.errors import RecipeError
from hadskip_export.trainers.batches import Dataset
from hadskip_export.trainers.evaluation import above, predict_routed


def hard_routes(model: GatedClassifier, data: Dataset, device: str = "cpu") -> HardRoutes:
    """What the model's hard gates do with `data`, of which no gradient has seen a row."""

    def evaluate(rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        return predict_routed(model, data.subset(rows), above(threshold), device)[1:]

    return HardRoutes(evaluate, len(data))


def fit_threshold(model: GatedClassifier, data: Dataset, budget: float, device: str = "cpu") -> float:
    """`find_threshold` on `hard_routes`.

    Raises:
        RecipeError: training has diverged.
    """
    try:
        return find_threshold(hard_routes(model, data, device), budget)
    except ValueError as error:
        raise RecipeError(f"{error}; lower fit_lr, body_lr or gate_lr (--set)") from error
