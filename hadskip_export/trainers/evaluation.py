"""Predictions over a whole dataset: with every layer, as the gates decide, on routes given from outside, or of every
exit."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.exits import ExitClassifier, Student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.trainers.batches import Dataset, TrainingBatch, ordered_batches
from hadskip_export.trainers.walk import walk


def full_logits(model: Classifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], every layer run."""
    return _logits(model, data, device, lambda batch: model(*batch.inputs).logits)


def gated_logits(model: GatedClassifier, data: Dataset, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], where the gates decide, at threshold 0."""
    return _logits(model, data, device, lambda batch: model.route(*batch.inputs, lambda _, margin: margin > 0).logits)


def logits_on_routes(model: Student, data: Dataset, routes: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Logits, float32 [n, labels], where every input runs the layers it is told to, bool [n, L]."""

    def answer(batch: TrainingBatch) -> Tensor:
        runs = torch.from_numpy(routes[batch.rows]).to(device)
        logits = torch.zeros(len(runs), len(model.classifier.config.labels), device=device)
        for _, rows, found in walk(model, batch, lambda i, ran, rows, _: (runs[rows, i], ~runs[rows, i])):
            logits[rows] = found
        return logits

    return _logits(model, data, device, answer)


@torch.no_grad()
def exit_answers(model: ExitClassifier, data: Dataset, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """What each exit says, and the head, float32 [L, n, answers], padded with NaN where the head says less; and the
    layers that inputs run if no exit lets them go, bool [n, L]."""
    model.eval()
    found: np.ndarray | None = None
    runs = np.zeros((len(data), len(model.classifier.layers)), bool)
    for batch in ordered_batches(data, device=device):
        answers, ran = model.ask(*batch.inputs)
        runs[batch.rows] = ran.cpu().numpy()
        if found is None:
            found = np.full((len(answers), len(data), answers[0].shape[1]), np.nan, np.float32)
        for number, answer in enumerate(answers):
            found[number, batch.rows, : answer.shape[1]] = answer.cpu().numpy()
    assert found is not None
    return found, runs


@torch.no_grad()
def _logits(
    model: Classifier | Student, data: Dataset, device: str, answer: Callable[[TrainingBatch], Tensor]
) -> np.ndarray:
    model.eval()
    config = (model if isinstance(model, Classifier) else model.classifier).config
    logits = np.zeros((len(data), len(config.labels)), np.float32)
    for batch in ordered_batches(data, device=device):
        logits[batch.rows] = answer(batch).cpu().numpy()
    return logits
