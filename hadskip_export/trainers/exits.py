"""Training exits: each learns the task, and what the teacher says."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hadskip_export.modeling.exits import ExitClassifier
from hadskip_export.trainers.batches import TrainingBatch, count_batches
from hadskip_export.trainers.evaluation import exit_answers
from hadskip_export.trainers.loop import train_epochs
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import log_held_out
from hadskip_export.trainers.teacher import Teacher
from hadskip_export.trainers.word_dropout import drop_words

# (how many exits, the share of the training behind, the batch's number) -> what each exit's loss counts for, float [L]
Weigh = Callable[[int, float, int], Tensor]


@dataclass(frozen=True)
class Passed:
    """A batch after all layers.

    Args:
        states: what each layer gave, float [b, s, H].
        answers: of each exit, float [b, answers].
    """

    batch: TrainingBatch
    states: list[Tensor]
    answers: list[Tensor]


class Among(nn.Module, ABC):
    """What exits learn from each other, with weights that learn, too: their losses become its own."""

    @abstractmethod
    def forward(self, model: ExitClassifier, losses: Tensor, passed: Passed) -> Tensor:
        """
        Args:
            losses: what each exit learns of labels and teacher, float [L].

        Returns:
            What each exit learns, float [L].
        """


def train_exits(
    model: ExitClassifier,
    teacher: Teacher,
    weigh: Weigh,
    session: Session,
    *,
    labels: bool,
    rate: float,
    epochs: int,
    phase: str,
    among: Among | None = None,
) -> None:
    """What of the model has a gradient learns. Where the recipe does not distil, from the texts as they are.

    Args:
        labels: whether the exits learn the task's, or from the teacher alone.
        rate: the learning rate's peak.
        among: what they learn from each other; nothing if left out.
    """
    recipe, num_exits = session.recipe, len(model.classifier.layers)
    steps = epochs * count_batches(session.data, recipe.batch_size)
    classes = len(model.classifier.config.labels)

    def step(batch: TrainingBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        states, answers = [], []
        for leave, (state, _) in zip(model.all_exits, model.through(*batch.inputs), strict=True):
            states.append(state)
            answers.append(leave(state, batch.attention_mask))
        taught = teacher(batch, keep_states=False).logits if recipe.alpha1 else None
        losses = torch.stack([exit_loss(answer[:, :classes], taught, batch, session, labels) for answer in answers])
        if among is not None:
            losses = among(model, losses, Passed(batch, states, answers))
        weights = weigh(num_exits, number / steps, number).to(losses.device)
        loss = (weights * losses).sum()
        figures = {"exits": losses.detach().mean()}
        if model.kind == "certain" and bool(weights[:-1].any()):
            figures["certainty"] = _certainty_loss(answers[:-1], taught, batch)
            loss = loss + figures["certainty"]
        return loss, {name: figure.detach() for name, figure in figures.items()}

    learns: Iterator[nn.Parameter] = (one for one in model.parameters() if one.requires_grad)
    groups, trained = [(learns, rate)], nn.ModuleList([model])
    if among is not None:
        groups.append((among.parameters(), recipe.gate_lr))
        trained.append(among)
    alter = drop_words if recipe.alpha1 else lambda batch: batch
    for epoch in train_epochs(trained, groups, step, session, alter=alter, epochs=epochs, phase=phase):
        (answers, _), rows = exit_answers(model, session.held_out, session.device), np.arange(len(session.held_out))
        log_held_out(answers[rows % num_exits, rows, :classes], "3", epoch, session)
    model.eval()


def exit_loss(
    logits: Tensor, taught: Tensor | None, batch: TrainingBatch, session: Session, labels: bool = True
) -> Tensor:
    """Equations 4 and 5 of HadSkip's paper for one exit."""
    objective, loss = session.objective, logits.new_zeros(())
    if labels and batch.targets is not None:
        losses = objective.task_losses(logits, batch.targets)
        loss = (losses if batch.altered is None else losses * ~batch.altered).mean()
    if taught is not None:
        loss = loss + session.recipe.alpha1 * objective.prediction_loss(logits, taught)
    return loss


def _certainty_loss(answers: list[Tensor], taught: Tensor | None, batch: TrainingBatch) -> Tensor:
    """The squared error of what each exit says of being right (BERxiT's "learning to exit"), summed over exits; where
    the text has no label, of agreeing with the teacher."""
    right = batch.targets
    if right is None or batch.altered is not None:
        assert taught is not None  # else texts have labels, and nobody alters them
        theirs = taught.argmax(dim=1)
        right = theirs if right is None else torch.where(batch.altered, theirs, right)
    told = torch.stack([answer[:, -1].sigmoid() for answer in answers])
    truly = torch.stack([(answer[:, :-1].argmax(dim=1) == right).float() for answer in answers])
    return F.mse_loss(told, truly) * len(answers)
