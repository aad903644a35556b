"""Gates beside exits, fitted to them by backward induction: are the layers to come worth their price?

What going on is worth depends on where later exits let an input go, so the last gate is fitted first, as in
`gate_fitting`. Here a gate has one question only, for who has left does not come back.
"""

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.exits import ATTENTION_WIDTH, ExitClassifier
from hadskip_export.modeling.gated import Gate
from hadskip_export.support.progress import track
from hadskip_export.trainers.batches import Dataset, count_batches, ordered_batches
from hadskip_export.trainers.gate_fitting import OBSERVE_BATCH, fit_gate, margin_of
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher

STILL = 1e-6  # the deviation of a number that is the same for all inputs, but for rounding


def fit_judges(model: ExitClassifier, teacher: Teacher, session: Session, label: str) -> None:
    """Fits the gate of every exit anew, to as many training rows as the recipe says.

    Args:
        model: with exits of the kind `judged`, which have learned.
    """
    recipe, device = session.recipe, next(model.exits.parameters()).device
    rows = np.random.default_rng(session.seed).permutation(len(session.data))[: recipe.fit_rows]
    seen, divergence = observe(model, teacher.logits()[torch.from_numpy(rows)], session.data.subset(rows), session)
    value = divergence[-1]
    for index in track(reversed(range(len(seen))), len(seen), label):
        gate, stay = model.exits[index].gate.cpu(), divergence[index]  # where the observations are
        go = value + recipe.layer_price
        fit_to_deviations(gate, seen[index], go - stay, recipe)
        value = torch.where(margin_of(gate, seen[index]) > 0, go, stay)
        gate.to(device)


@torch.no_grad()
def observe(model: ExitClassifier, teacher_logits: Tensor, data: Dataset, session: Session) -> tuple[Tensor, Tensor]:
    """
    Args:
        teacher_logits: for `data`, float32 [n, labels].

    Returns:
        What each exit classifies, float32 [L - 1, n, w]; how far its answer, and at last the head's, is from the
        teacher's, float32 [L, n], see `Objective.divergence`.
    """
    model.eval()
    seen = torch.zeros(len(model.exits), len(data), ATTENTION_WIDTH)
    divergence = torch.zeros(len(model.exits) + 1, len(data))
    for batch in track(
        ordered_batches(data, OBSERVE_BATCH, session.device), count_batches(data, OBSERVE_BATCH), "exits"
    ):
        rows = torch.from_numpy(batch.rows)
        taught, last = teacher_logits[rows.to(teacher_logits.device)], len(seen)
        for index, (states, _) in enumerate(model.through(*batch.inputs)):
            if index == last:
                logits = model.classifier.head(states, batch.attention_mask)
            else:
                read = model.exits[index].read(states, batch.attention_mask)
                seen[index, rows], logits = read.cpu(), model.exits[index].classify(read)
            divergence[index, rows] = session.objective.divergence(logits, taught).cpu()
    return seen, divergence


def fit_to_deviations(gate: Gate, seen: Tensor, difference: Tensor, recipe: Recipe) -> None:
    """`fit_gate` for what the gate sees less its mean and divided by its standard deviation, number by number. The gate
    that comes of it sees it as it is.

    Args:
        difference: `V(run) - V(skip)`, float32 [n].
    """
    mean, deviation = seen.mean(dim=0), seen.std(dim=0, correction=0).clamp_min(STILL)
    fit_gate(gate, [((seen - mean) / deviation, difference)], [], recipe)
    with torch.no_grad():
        gate.hidden.weight /= deviation
        gate.hidden.bias -= gate.hidden.weight @ mean
