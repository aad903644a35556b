"""How a student comes to its routes: jointly with its gates (the paper), on a family of routes that gates are fitted to
afterwards, or on one route for every input (the rivals).

Each takes the student as the budget before left it and returns the student of this budget.
"""

import copy
from typing import Protocol

import numpy as np
import torch

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.budgets import budget_name
from hadskip_export.routing.families import FAMILIES, Draw, sizes_around
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.evaluation import fixed_routes
from hadskip_export.trainers.gate_fitting import fit_gates, observe
from hadskip_export.trainers.stages import Session, distil, train_jointly
from hadskip_export.trainers.teacher import Teacher

METHODS = ("hadskip", "budgeted", "static")
SEARCH_EPOCHS = 1


class Learn(Protocol):
    def __call__(
        self, model: GatedClassifier, teacher: Teacher, previous: float, budget: float, epochs: int, session: Session
    ) -> GatedClassifier:
        """Trains a student for `budget`, in layers, starting from `model`, which was trained for `previous`."""
        ...


def learn_jointly(
    model: GatedClassifier, teacher: Teacher, previous: float, budget: float, epochs: int, session: Session
) -> GatedClassifier:
    """Stage III as the paper has it."""
    train_jointly(model, teacher, previous, budget, epochs, session)
    return model


def learn_nested(
    model: GatedClassifier, teacher: Teacher, previous: float, budget: float, epochs: int, session: Session
) -> GatedClassifier:
    """First the body, on routes drawn from a family around the budget; then the gates, by backward induction."""
    recipe, num_layers = session.recipe, len(model.gates)
    family = FAMILIES[recipe.family](sizes_around(budget, recipe.family_spread, num_layers), num_layers)
    name = f"stage III, budget {budget_name(budget)}"
    distil(model, teacher, Draw(family, num_layers, session.seed), epochs, session, name)
    rows = np.random.default_rng(session.seed).permutation(len(session.data))[: recipe.fit_rows]
    logits = teacher.logits()[torch.from_numpy(rows)]
    evidence = observe(model, logits, session.data.subset(rows), family, session.device)
    fit_gates(model, evidence, family, recipe.layer_price, recipe, f"{name}: gates")
    return model


def learn_fixed(route: Route) -> Learn:
    """Every input runs `route`; the student starts from the teacher."""

    def learn(
        model: GatedClassifier, teacher: Teacher, previous: float, budget: float, epochs: int, session: Session
    ) -> GatedClassifier:
        student = GatedClassifier(copy.deepcopy(teacher.model).requires_grad_(True), fixed_route=route)
        student.to(session.device)
        layers = " ".join(map(str, route))
        draw = Draw([route], len(student.gates), session.seed)
        distil(student, teacher, draw, epochs, session, f"stage III, layers {layers}")
        return student

    return learn


def learn_best_fixed(
    model: GatedClassifier, teacher: Teacher, previous: float, budget: float, epochs: int, session: Session
) -> GatedClassifier:
    """The best route of its size, found before it is trained by itself: an epoch on all of them at random, then the
    one that is nearest to the teacher on the held-out slice."""
    student = GatedClassifier(copy.deepcopy(teacher.model).requires_grad_(True), session.recipe.gate_width)
    student.to(session.device)
    candidates = fixed_routes(len(student.gates), round(budget), [])
    distil(student, teacher, Draw(candidates, len(student.gates), session.seed), SEARCH_EPOCHS, session, "search")
    held_out = Teacher(teacher.model, session.held_out, session.device)
    found = observe(student, held_out.logits(), session.held_out, candidates, session.device).divergence
    best = min(candidates, key=lambda route: float(found[route].mean()))
    session.log(phase="search", divergence={str(route): float(cost.mean()) for route, cost in found.items()})
    return learn_fixed(best)(model, teacher, previous, budget, epochs, session)
