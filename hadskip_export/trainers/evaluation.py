"""Predictions over a whole dataset: with every layer, as the gates decide, or on routes given from outside."""

import numpy as np
import torch

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.trainers.batches import Dataset, ordered_batches


@torch.no_grad()
def full_logits(model: Classifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], every layer run."""
    model.eval()
    logits = np.zeros((len(data), len(model.config.labels)), np.float32)
    for batch in ordered_batches(data, device=device):
        logits[batch.rows] = model(*batch.inputs).logits.cpu().numpy()
    return logits


@torch.no_grad()
def gated_logits(model: GatedClassifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], where the gates decide, at threshold 0."""
    model.eval()
    logits = np.zeros((len(data), len(model.classifier.config.labels)), np.float32)
    for batch in ordered_batches(data, device=device):
        logits[batch.rows] = model.route(*batch.inputs, lambda _, margin: margin > 0).logits.cpu().numpy()
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
