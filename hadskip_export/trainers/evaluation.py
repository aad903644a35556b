"""Predictions and routes over a whole dataset, with hard gates, fixed routes or every layer."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier, attention_bias
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import Route, as_row
from hadskip_export.trainers.batches import Dataset, ordered_batches

MAX_FIXED_ROUTES = 200


@torch.no_grad()
def full_logits(model: Classifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], every layer run."""
    model.eval()
    logits = np.zeros((len(data), len(model.config.labels)), np.float32)
    for batch in ordered_batches(data, device=device):
        logits[batch.rows] = model(*batch.inputs).logits.cpu().numpy()
    return logits


@torch.no_grad()
def logits_on_routes(model: GatedClassifier, data: Dataset, routes: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], where every input runs the layers it is told to, bool [n, L]."""
    model.eval()
    logits = np.zeros((len(data), len(model.classifier.config.labels)), np.float32)
    for batch in ordered_batches(data, device=device):
        told = torch.from_numpy(routes[batch.rows]).to(device)
        logits[batch.rows] = model.follow(*batch.inputs, told).logits.cpu().numpy()
    return logits


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


def fixed_routes(num_layers: int, size: int, common: list[Route], seed: int = 0) -> list[Route]:
    """All routes of `size` layers or, where there are too many, a random choice with the common ones among it."""
    if math.comb(num_layers, size) <= MAX_FIXED_ROUTES:
        return list(itertools.combinations(range(1, num_layers + 1), size))
    random = np.random.default_rng(seed)
    chosen = {route for route in common if len(route) == size}
    while len(chosen) < MAX_FIXED_ROUTES:
        chosen.add(tuple(sorted(int(layer) + 1 for layer in random.choice(num_layers, size, replace=False))))
    return sorted(chosen)


@torch.no_grad()
def predict_fixed_routes(
    model: Classifier, data: Dataset, routes: list[Route], device: str = "cpu"
) -> dict[Route, np.ndarray]:
    """Logits of every input under each route, float32 [n, labels]. Routes that begin alike share the work."""
    model.eval()
    num_layers, distances = len(model.layers), model.distances()
    found = {route: np.zeros((len(data), len(model.config.labels)), np.float32) for route in routes}
    for batch in ordered_batches(data, device=device):
        input_ids, attention_mask, token_type_ids = batch.inputs
        hidden = model.embeddings(input_ids, token_type_ids)
        bias = attention_bias(attention_mask, hidden.dtype)

        def walk(index: int, hidden: Tensor, alike: list[Route], bias: Tensor = bias, batch=batch) -> None:
            if index > num_layers:
                found[alike[0]][batch.rows] = model.head(hidden, batch.attention_mask).cpu().numpy()
                return
            skipping = [route for route in alike if index not in route]
            running = [route for route in alike if index in route]
            if skipping:
                walk(index + 1, hidden, skipping)
            if running:
                walk(index + 1, model.layers[index - 1](hidden, bias, distances)[0], running)

        walk(1, hidden, routes)
    return found
