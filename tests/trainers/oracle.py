"""The plain way to what the package finds faster: a threshold at a time, a route at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import Route, as_row
from hadskip_export.routing.thresholds import HardRoutes
from hadskip_export.trainers.batches import Dataset, ordered_batches


def above(threshold: float) -> Callable[[int, Tensor], Tensor]:
    """The hard gates' decision: a layer runs where its margin is above the threshold."""
    return lambda index, margin: margin > threshold


def always(route: Route, num_layers: int) -> Callable[[int, Tensor], Tensor]:
    """One route for every input."""
    row = as_row(route, num_layers)
    return lambda index, margin: torch.full_like(margin, bool(row[index]), dtype=torch.bool)


def predict_routed(
    model: GatedClassifier, data: Dataset, decide: Callable[[int, Tensor], Tensor], device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits float32 [n, labels], routes bool [n, L] and margins float32 [n, L], as `decide` routes them."""
    model.eval()
    shape = (len(data), len(model.gates))
    logits = np.zeros((len(data), len(model.classifier.config.labels)), np.float32)
    routes, margins = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for batch in ordered_batches(data, device=device):
        output = model.route(*batch.inputs, decide)
        assert output.gates is not None and output.margins is not None
        logits[batch.rows] = output.logits.cpu().numpy()
        routes[batch.rows] = output.gates.cpu().numpy()
        margins[batch.rows] = output.margins.cpu().numpy()
    return logits, routes, margins


def predict_fixed_routes(model: GatedClassifier, data: Dataset, routes: Sequence[Route]) -> dict[Route, np.ndarray]:
    """Logits of every input under each route, float32 [n, labels]."""
    return {route: predict_routed(model, data, always(route, len(model.gates)))[0] for route in routes}


def hard_routes(model: GatedClassifier, data: Dataset) -> HardRoutes:
    """What the model's hard gates do with `data`."""

    def evaluate(rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        return predict_routed(model, data.subset(rows), above(threshold))[1:]

    return HardRoutes(evaluate, len(data))
