"""The three stages of HadSkip (paper, section 4.3), each one loop over batches with a loss of its own."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.modeling.reinmax import ESTIMATORS
from hadskip_export.support.errors import RecipeError
from hadskip_export.support.progress import track
from hadskip_export.trainers.batches import TrainingBatch, count_batches, shuffled_batches
from hadskip_export.trainers.evaluation import full_logits
from hadskip_export.trainers.losses import distillation_loss, stage3_loss
from hadskip_export.trainers.schedule import Leg, glide
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher

Step = Callable[[TrainingBatch], tuple[Tensor, dict[str, Tensor]]]
Choose = Callable[[np.ndarray], np.ndarray]  # rows of the training data, int [b] -> their routes, bool [b, L]


def fine_tune(model: Classifier, session: Session) -> None:
    """Stage I: plain fine-tuning (equation 4). The epoch that is best on the held-out slice is kept."""
    recipe = session.recipe

    def step(batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.targets is not None
        loss = session.objective.task_loss(model(*batch.inputs).logits, batch.targets)
        return loss, {"task": loss.detach()}

    best, kept = float("-inf"), None
    groups = [(model.parameters(), recipe.stage1_lr)]
    for epoch in _epochs(model, groups, step, session, epochs=recipe.stage1_epochs, label="stage I"):
        value = session.score(full_logits(model, session.held_out, session.device), session.held_out)
        session.log(stage="1", epoch=epoch, held_out=value)
        if value > best:
            best, kept = value, copy.deepcopy(model.state_dict())
    assert kept is not None
    model.load_state_dict(kept)
    model.eval()


def initialise_gates(model: GatedClassifier, teacher: Teacher, session: Session) -> None:
    """Stage II: only the gates learn, on the task's loss (the teacher's predictions, where there are no labels),
    without a budget; the body is frozen and without dropout."""
    estimator = ESTIMATORS[session.recipe.estimator]
    model.classifier.requires_grad_(False)

    def step(batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(*batch.inputs, estimator=estimator, margin_limit=session.recipe.margin_limit)
        if batch.targets is not None:
            loss = session.objective.task_loss(output.logits, batch.targets)
        else:
            loss = session.objective.prediction_loss(output.logits, teacher(batch, keep_states=False).logits)
        return loss, {"task": loss.detach(), "layers": output.gates.detach().sum(dim=1).mean()}

    groups = [(model.gates.parameters(), session.recipe.gate_lr)]
    for _ in _epochs(model.gates, groups, step, session, epochs=session.recipe.stage2_epochs, label="stage II"):
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
    steps = itertools.count()
    gliding = recipe.glide * leg.epochs * count_batches(session.data, recipe.batch_size)

    def step(batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        target = teacher(batch, recipe.distils_states)
        done = next(steps)
        aim = glide(leg.previous, leg.budget, done, gliding)
        limit = recipe.margin_limit if done < gliding else math.inf
        output = model(*batch.inputs, estimator=estimator, margin_limit=limit, keep_states=recipe.distils_states)
        loss, terms = stage3_loss(output, target, batch, aim, session)
        return loss, terms | {"layers": output.gates.detach().sum(dim=1).mean()}

    groups = [(model.classifier.parameters(), recipe.body_lr), (model.gates.parameters(), recipe.gate_lr)]
    for _ in _epochs(model, groups, step, session, epochs=leg.epochs, label=f"stage III, budget {leg.budget:g}"):
        pass
    model.eval()


def distil(
    model: GatedClassifier, teacher: Teacher, choose: Choose, session: Session, *, epochs: int, label: str
) -> None:
    """The body learns from the task and the frozen teacher, each row on a route chosen for it; the gates stay."""
    recipe = session.recipe

    def step(batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        routes = torch.from_numpy(choose(batch.rows)).to(session.device)
        output = model.follow(*batch.inputs, routes, keep_states=recipe.distils_states)
        target = teacher(batch, recipe.distils_states)
        return distillation_loss(output, target, routes, batch, session)

    groups = [(model.classifier.parameters(), recipe.body_lr)]
    for _ in _epochs(model, groups, step, session, epochs=epochs, label=label):
        pass
    model.eval()


def _epochs(
    module: nn.Module,
    groups: list[tuple[Iterator[nn.Parameter], float]],
    step: Step,
    session: Session,
    *,
    epochs: int,
    label: str,
) -> Iterator[int]:
    """Trains for `epochs` and yields after each one (number from 1), with the mean of the step's figures logged.

    Raises:
        RecipeError: one of them is no number.
    """
    recipe = session.recipe
    device_type = torch.device(session.device).type
    per_epoch = count_batches(session.data, recipe.batch_size)
    total = epochs * math.ceil(per_epoch / recipe.accumulate)
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters), "lr": rate} for parameters, rate in groups],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    warmup = max(1, round(recipe.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / warmup, (total - done) / max(1, total - warmup))
    )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for epoch in range(1, epochs + 1):
        module.train()
        sums: dict[str, Tensor] = {}  # on the device: to read one waits for it
        batches = shuffled_batches(session.data, recipe.batch_size, session.seed + epoch, session.device)
        for done, batch in enumerate(track(batches, per_epoch, f"{label}, epoch {epoch} of {epochs}")):
            with torch.autocast(device_type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss, figures = step(batch)
            first = done - done % recipe.accumulate
            together = min(recipe.accumulate, per_epoch - first)
            (loss / together).backward()
            for name, figure in figures.items():
                sums[name] = sums[name] + figure if name in sums else figure.float()  # not every device has doubles
            if done + 1 == first + together:
                nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
        means = {name: float(value) / per_epoch for name, value in sums.items()}
        if not all(map(math.isfinite, means.values())):
            rates = ", ".join(f"{rate:g}" for _, rate in groups)
            raise RecipeError(
                f"{label}, epoch {epoch}: the loss is no longer a number; train anew at a learning rate lower than"
                f" {rates} (stage1_lr, body_lr, gate_lr; see --set)"
            )
        session.log(phase=label, epoch=epoch, **means)
        yield epoch
