"""Gates fitted to a finished body by backward induction over a family of routes.

What a decision is worth depends on the decisions after it, so the last gate is fitted first: with every later gate in
place, `V(run) - V(skip)` at a gate is a number per input, and the gate learns its sign, each input weighing what a
mistake on it costs. `V` is the divergence from the teacher plus a price for every layer run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hadskip_export.modeling.gated import FIXED_MARGIN, Gate, GatedClassifier, pooled
from hadskip_export.routing.routes import Route
from hadskip_export.support.progress import track
from hadskip_export.trainers.batches import Dataset, count_batches, ordered_batches
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.walk import prefixes, walk

BATCH, FORCED = 256, 64  # rows of a step, and those among them whose decision the family leaves no choice about
OBSERVE_BATCH = 64
TINY = 1e-12  # nats; where no decision matters at all, none weighs anything


@dataclass(frozen=True)
class Evidence:
    """What every route of a family does to every input.

    Args:
        states: the layers run so far -> what the next gate sees, float32 [n, H]. A skipped layer changes nothing, so
            the layers run say it all.
        divergence: a whole route -> its prediction's from the teacher's, float32 [n], see `Objective.divergence`.
    """

    states: dict[Route, Tensor]
    divergence: dict[Route, Tensor]


def run_so_far(family: Iterable[Route], index: int) -> list[Route]:
    """The layers that may have run before the gate of layer `index` (from 0) is asked."""
    return sorted({tuple(layer for layer in route if layer <= index) for route in family})


def observe(
    model: GatedClassifier, teacher_logits: Tensor, data: Dataset, family: Sequence[Route], session: Session
) -> Evidence:
    """Runs every route of `family` on every input; routes that begin alike share the work.

    Args:
        teacher_logits: for `data`, float32 [n, labels].
        session: says where to compute, and what a prediction's divergence is.
    """
    model.eval()
    n, wanted = len(data), prefixes(list(family), len(model.gates))
    states: dict[Route, Tensor] = {}
    divergence = {route: torch.zeros(n) for route in family}
    batches = ordered_batches(data, OBSERVE_BATCH, session.device)
    for batch in track(batches, count_batches(data, OBSERVE_BATCH), "routes of the family"):
        rows, attention_mask = torch.from_numpy(batch.rows), batch.attention_mask

        def branch(index: int, ran: Route, _: Tensor, hidden: Tensor, mask=attention_mask, rows=rows) -> tuple:
            if index == 0 or ran[-1:] == (index,):  # else the gate before saw the same
                seen = pooled(hidden, mask).cpu()
                states.setdefault(ran, torch.zeros(n, seen.shape[1]))[rows] = seen
            every = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
            return every & ((index + 1, (*ran, index + 1)) in wanted), every & ((index + 1, ran) in wanted)

        teacher = teacher_logits[rows.to(teacher_logits.device)]
        for route, _, logits in walk(model, batch, branch):
            divergence[route][rows] = session.objective.divergence(logits, teacher).cpu()
    if model.upfront:
        states = dict.fromkeys(states, states[()])
    return Evidence(states, divergence)


def fit_gates(model: GatedClassifier, evidence: Evidence, recipe: Recipe, label: str) -> None:
    """Fits every gate anew to the routes observed, the last one first. A layer that all of them run, or none, gets a
    fixed decision."""
    device = next(model.gates.parameters()).device
    model.gates.cpu()  # where the evidence is; gates are small
    family = evidence.divergence.keys()
    values = {route: cost + recipe.layer_price * len(route) for route, cost in evidence.divergence.items()}
    num_layers = len(model.gates)
    for index in track(reversed(range(num_layers)), num_layers, label):
        number, gate = index + 1, model.gates[index]
        free, forced = [], []
        for ran in run_so_far(family, index):
            run, skip, seen = values.get((*ran, number)), values.get(ran), evidence.states[ran]
            if run is not None and skip is not None:
                free.append((seen, run - skip))
            else:
                forced.append((seen, torch.full(seen.shape[:1], 1.0 if run is None else -1.0)))
        always = {float(difference[0]) for _, difference in forced}
        if not free and len(always) == 1:
            _fix_gate(gate, runs=always == {-1.0})
        else:
            fit_gate(gate, free, forced, recipe)
        values = {ran: _value(gate, ran, number, evidence.states[ran], values) for ran in run_so_far(family, index)}
    model.gates.to(device)


def _value(gate: Gate, ran: Route, number: int, seen: Tensor, after: dict[Route, Tensor]) -> Tensor:
    """V before a gate, float32 [n]: that of the branch its hard decision takes."""
    run, skip = after.get((*ran, number)), after.get(ran)
    if run is None or skip is None:
        return run if skip is None else skip
    return torch.where(margin_of(gate, seen) > 0, run, skip)


@torch.no_grad()
def margin_of(gate: Gate, seen: Tensor) -> Tensor:
    """Of what gates see, float32 [n]."""
    logits = gate.decide(seen)
    return logits[:, 0] - logits[:, 1]


def fit_gate(
    gate: Gate, free: list[tuple[Tensor, Tensor]], forced: list[tuple[Tensor, Tensor]], recipe: Recipe
) -> None:
    """Cross-entropy on the sign of `V(run) - V(skip)`, weighted by its size; forced decisions weigh 1."""
    parts = []  # ((inputs, whether to run, weights), rows of a step)
    some = BATCH if not free else FORCED if forced else 0
    for examples, count in ((free, BATCH - some), (forced, some)):
        if examples:
            seen, difference = (torch.cat(column) for column in zip(*examples, strict=True))
            parts.append(((seen, difference < 0, difference.abs() / difference.abs().mean().clamp_min(TINY)), count))
    width, hidden_size = gate.hidden.weight.shape  # a gate fixed for the budget before would hardly move from there
    gate.load_state_dict(Gate(hidden_size, width, recipe.gate_bias).state_dict())
    gate.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(gate.parameters(), lr=recipe.fit_lr, weight_decay=recipe.fit_weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / recipe.fit_steps)
    for _ in range(recipe.fit_steps):
        drawn = [(part, torch.randint(len(part[0]), (count,))) for part, count in parts]
        inputs, runs, weight = (torch.cat([part[i][rows] for part, rows in drawn]) for i in range(3))
        logits = gate.decide(F.dropout(inputs, recipe.fit_dropout))
        loss = (weight * F.cross_entropy(logits, (~runs).long(), reduction="none")).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    gate.eval()


@torch.no_grad()
def _fix_gate(gate: Gate, runs: bool) -> None:
    gate.logits.weight.zero_()
    sign = 1 if runs else -1
    gate.logits.bias.copy_(torch.tensor([sign * FIXED_MARGIN / 2, -sign * FIXED_MARGIN / 2]))
