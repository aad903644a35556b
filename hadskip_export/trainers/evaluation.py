"""Predictions over a whole dataset: with every layer, as the gates decide, on routes given from outside, or of every
exit."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.exits import ExitClassifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.trainers.batches import Dataset, TrainingBatch, ordered_batches
from hadskip_export.trainers.walk import walk


def full_logits(model: Classifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], every layer run."""
    return _logits(model, data, device, lambda batch: model(*batch.inputs).logits)


def gated_logits(model: GatedClassifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], where the gates decide, at threshold 0."""
    return _logits(model, data, device, lambda batch: model.route(*batch.inputs, lambda _, margin: margin > 0).logits)


def logits_on_routes(model: GatedClassifier, data: Dataset, routes: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], where every input runs the layers it is told to, bool [n, L]."""

    def answer(batch: TrainingBatch) -> Tensor:
        runs = torch.from_numpy(routes[batch.rows]).to(device)
        logits = torch.zeros(len(runs), len(model.classifier.config.labels), device=device)
        for _, rows, found in walk(model.classifier, batch, lambda i, ran, rows, _: (runs[rows, i], ~runs[rows, i])):
            logits[rows] = found
        return logits

    return _logits(model, data, device, answer)


@torch.no_grad()
def exit_answers(model: ExitClassifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """What each exit says, and the head, float32 [L, n, answers], padded with NaN where the head says less."""
    model.eval()
    found: np.ndarray | None = None
    for batch in ordered_batches(data, device=device):
        answers = model(*batch.inputs)
        if found is None:
            found = np.full((len(answers), len(data), answers[0].shape[1]), np.nan, np.float32)
        for number, answer in enumerate(answers):
            found[number, batch.rows, : answer.shape[1]] = answer.cpu().numpy()
    assert found is not None
    return found


@torch.no_grad()
def _logits(
    model: Classifier | GatedClassifier, data: Dataset, device: str, answer: Callable[[TrainingBatch], Tensor]
) -> np.ndarray:
    model.eval()
    config = (model.classifier if isinstance(model, GatedClassifier) else model).config
    logits = np.zeros((len(data), len(config.labels)), np.float32)
    for batch in ordered_batches(data, device=device):
        logits[batch.rows] = answer(batch).cpu().numpy()
    return logits
