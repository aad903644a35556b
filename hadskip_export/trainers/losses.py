"""The training loss: the objective's terms, the budget penalty (paper, equation 3) and distillation (appendix B)."""

from collections.abc import Callable

import torch
from torch import Tensor

from hadskip_export.modeling.encoder import Output
from hadskip_export.modeling.gated import GatedOutput
from hadskip_export.trainers.batches import TrainingBatch
from hadskip_export.trainers.session import Session


def budget_penalty(
    gates: Tensor, budget: float, unit: str, mean: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """`(mean layers run - budget)^2`, the mean over the batch, so single inputs may use more or fewer.

    Args:
        gates: 0. or 1. with the estimator's gradient, [b, L].
        mean: own mean layers, without gradient -> those of the batch of which these rows are a part.
        budget: in layers.
        unit: `layers`, or `share` for equation 3 as printed (both terms divided by L).
    """
    scale = 1 if unit == "layers" else gates.shape[1]
    own = gates.sum(dim=1).mean()
    layers = own + (mean(own.detach()) - own.detach())
    return ((layers - budget) / scale) ** 2


def token_mse(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over inputs of each one's mean squared error over its real tokens; float [b, s, H]."""
    per_token = ((student - teacher) ** 2).mean(dim=-1).masked_fill(attention_mask == 0, 0.0)
    return (per_token.sum(dim=1) / attention_mask.sum(dim=1)).mean()


def hidden_loss(student: list[Tensor], teacher: list[Tensor], attention_mask: Tensor) -> Tensor:
    """Equation 6: mean over layers 1..L, the student's `h_i` whether or not layer i ran."""
    pairs = zip(student[1:], teacher[1:], strict=True)
    return torch.stack([token_mse(ours, theirs, attention_mask) for ours, theirs in pairs]).mean()


def attention_loss(student: list[Tensor], teacher: list[Tensor], ran: Tensor, attention_mask: Tensor) -> Tensor:
    """Equation 7: head-averaged maps, float [b, s, s], real tokens only; the mean over all layers, where one that did
    not run, and has no map, counts as 0.

    Args:
        ran: bool [b, L] or, of all inputs, [L].
    """
    mask = attention_mask.to(student[0].dtype)
    pairs_of_tokens = mask[:, :, None] * mask[:, None, :]
    per_input = [
        ((ours - theirs) ** 2 * pairs_of_tokens).sum(dim=(1, 2)) / pairs_of_tokens.sum(dim=(1, 2))
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return (torch.stack(per_input, dim=1) * ran).mean()


def distillation_loss(
    student: Output, teacher: Output, ran: Tensor, batch: TrainingBatch, session: Session
) -> tuple[Tensor, dict[str, Tensor]]:
    """The task's loss and appendix B's, weighted, and their terms, each before its weight.

    Args:
        ran: bool [b, L], or [L] of all inputs, the layers that the student ran.
        batch: without targets it is learned from the teacher alone.
    """
    recipe, objective, attention_mask = session.recipe, session.objective, batch.attention_mask
    weights = {"task": 1.0, "prediction": recipe.alpha1, "hidden": recipe.alpha2, "attention": recipe.alpha3}
    weights |= {"embedding": recipe.alpha4}
    terms = {}
    if batch.targets is not None:
        losses = objective.task_losses(student.logits, batch.targets)
        terms["task"] = (losses if batch.altered is None else losses * ~batch.altered).mean()
    if recipe.alpha1:
        terms["prediction"] = objective.prediction_loss(student.logits, teacher.logits)
    if recipe.alpha2:
        terms["hidden"] = hidden_loss(student.hidden_states, teacher.hidden_states, attention_mask)
    if recipe.alpha3:
        terms["attention"] = attention_loss(student.attention_maps, teacher.attention_maps, ran, attention_mask)
    if recipe.alpha4:
        terms["embedding"] = token_mse(student.hidden_states[0], teacher.hidden_states[0], attention_mask)
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}


def stage3_loss(
    student: GatedOutput, teacher: Output, batch: TrainingBatch, budget: float, session: Session
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of stage III, `distillation_loss` and the budget penalty, and its terms."""
    assert student.gates is not None
    ran = student.gates.detach() > 0
    loss, terms = distillation_loss(student, teacher, ran, batch, session)

    def over_processes(own: Tensor) -> Tensor:
        return session.processes.total({"layers": own * batch.share})["layers"]

    penalty = budget_penalty(student.gates, budget, session.recipe.penalty_unit, over_processes)
    return loss + session.recipe.beta * penalty, terms | {"budget": penalty.detach()}
