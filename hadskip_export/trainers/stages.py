"""The three stages of HadSkip (paper, section 4.3), each one loop over batches with a loss of its own."""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.modeling.reinmax import ESTIMATORS
from hadskip_export.routing.families import Draw
from hadskip_export.routing.routes import as_row
from hadskip_export.trainers.batches import TrainingBatch, count_batches
from hadskip_export.trainers.evaluation import full_logits, gated_logits, logits_on_routes
from hadskip_export.trainers.loop import train_epochs
from hadskip_export.trainers.losses import distillation_loss, stage3_loss
from hadskip_export.trainers.schedule import Leg, glide
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher
from hadskip_export.trainers.word_dropout import drop_words


def fine_tune(model: Classifier, session: Session) -> None:
    """Stage I: plain fine-tuning (equation 4). The epoch that is best on the held-out slice is kept."""
    recipe = session.recipe

    def step(batch: TrainingBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.targets is not None
        loss = session.objective.task_loss(model(*batch.inputs).logits, batch.targets)
        return loss, {"task": loss.detach()}

    groups = [(model.parameters(), recipe.stage1_lr)]
    best: dict[str, Any] = {"value": float("-inf")}
    epochs = recipe.stage1_epochs
    for epoch in train_epochs(
        model, groups, step, session, epochs=epochs, phase="stage I", carried=best, saves_end=False
    ):
        value = log_held_out(full_logits(model, session.held_out, session.device), "1", epoch, session)
        if "weights" not in best or value > best["value"]:
            best |= {"value": value, "weights": copy.deepcopy(model.state_dict())}
    model.load_state_dict(best["weights"])
    model.eval()


def initialise_gates(model: GatedClassifier, teacher: Teacher, session: Session) -> None:
    """Stage II: only the gates learn, on the task's loss (the teacher's predictions, where there are no labels),
    without a budget; the body is frozen and without dropout."""
    estimator = ESTIMATORS[session.recipe.estimator]
    model.classifier.requires_grad_(False)

    def step(batch: TrainingBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(*batch.inputs, estimator=estimator, margin_limit=session.recipe.margin_limit)
        if batch.targets is not None:
            loss = session.objective.task_loss(output.logits, batch.targets)
        else:
            loss = session.objective.prediction_loss(output.logits, teacher(batch, keep_states=False).logits)
        return loss, {"task": loss.detach(), "layers": output.gates.detach().sum(dim=1).mean()}

    groups = [(model.gates.parameters(), session.recipe.gate_lr)]
    for _ in train_epochs(
        model.gates, groups, step, session, epochs=session.recipe.stage2_epochs, phase="stage II", saves_end=False
    ):
        pass
    model.classifier.requires_grad_(True)
    model.eval()


def train_jointly(model: GatedClassifier, teacher: Teacher, leg: Leg, session: Session) -> None:
    """Stage III of joint routing at one budget: everything learns, from task, frozen teacher and budget penalty.

    The penalty's target glides from the previous budget to this one. Were it to jump by a whole layer, the penalty
    would outweigh what any layer is worth, all gates would fall at one speed, and whichever happened to be lowest
    would close; with a small excess only the gates of layers worth less than the push fall. While the target moves,
    margins are limited, so that closed gates are still tried; then gates may settle and the body learns their routes.
    """
    recipe = session.recipe
    estimator = ESTIMATORS[recipe.estimator]
    gliding = recipe.glide * leg.epochs * count_batches(session.data, recipe.batch_size)

    def step(batch: TrainingBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        target = teacher(batch, recipe.distils_states)
        aim = glide(leg.previous, leg.budget, number, gliding)
        limit = recipe.margin_limit if number < gliding else math.inf
        output = model(*batch.inputs, estimator=estimator, margin_limit=limit, keep_states=recipe.distils_states)
        loss, terms = stage3_loss(output, target, batch, aim, session)
        return loss, terms | {"layers": output.gates.detach().sum(dim=1).mean()}

    groups = [(model.classifier.parameters(), recipe.body_lr), (model.gates.parameters(), recipe.gate_lr)]
    for epoch in train_epochs(model, groups, step, session, epochs=leg.epochs, phase=leg.name):
        log_held_out(gated_logits(model, session.held_out, session.device), "3", epoch, session)
    model.eval()


def distil(model: GatedClassifier, teacher: Teacher, draw: Draw, session: Session, *, epochs: int, phase: str) -> None:
    """The body learns from the task and the frozen teacher, every row on all routes drawn for its batch; the gates
    stay. The loss is the mean of the routes'."""
    recipe, num_layers = session.recipe, len(model.gates)

    def step(batch: TrainingBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        target, routes = teacher(batch, recipe.distils_states), draw(number)
        outputs = model.follow(*batch.inputs, routes, keep_states=recipe.distils_states)
        losses, terms = [], []
        for output, route in zip(outputs, routes, strict=True):
            ran = torch.from_numpy(as_row(route, num_layers)).to(session.device)
            loss, of_route = distillation_loss(output, target, ran, batch, session)
            losses.append(loss)
            terms.append(of_route)
        return torch.stack(losses).mean(), {name: torch.stack([of[name] for of in terms]).mean() for name in terms[0]}

    groups = [(model.classifier.parameters(), recipe.body_lr)]
    rows = np.stack([as_row(route, num_layers) for route in draw(0)])
    routes = rows[np.arange(len(session.held_out)) % len(rows)]
    for epoch in train_epochs(model, groups, step, session, alter=drop_words, epochs=epochs, phase=phase):
        log_held_out(logits_on_routes(model, session.held_out, routes, session.device), "3", epoch, session)
    model.eval()


def log_held_out(logits: np.ndarray, stage: str, epoch: int, session: Session) -> float:
    """The metric on the held-out slice, which is shown and logged."""
    value = session.display.held_out = session.score(logits, session.held_out)
    session.log(stage=stage, epoch=epoch, held_out=value)
    return value
