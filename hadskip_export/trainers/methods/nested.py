"""The adaptive recipe: the body learns a family of nested routes first, then the gates are fitted to it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.budgets import budget_name
from hadskip_export.routing.families import FAMILIES, Draw, sizes_around
from hadskip_export.trainers.gate_fitting import fit_gates, observe
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg, budget_path
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.teacher import Teacher


@dataclass(frozen=True)
class Nested:
    """Every budget goes on from the body of the one before; its gates are fitted anew."""

    initialises_gates: ClassVar[bool] = True
    fits_threshold: ClassVar[bool] = True

    def check(self, budget: float, num_layers: int) -> None:
        """Takes any budget."""

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        return budget_path(recipe, budget, num_layers)

    def learn(self, model: GatedClassifier, teacher: Teacher, leg: Leg, session: Session) -> GatedClassifier:
        """First the body, on routes drawn from a family around the budget; then the gates, by backward induction."""
        recipe, num_layers = session.recipe, len(model.gates)
        family = FAMILIES[recipe.family](sizes_around(leg.budget, recipe.family_spread, num_layers), num_layers)
        name = f"stage III, budget {budget_name(leg.budget)}"
        distil(model, teacher, Draw(family, num_layers, session.seed), session, epochs=leg.epochs, label=name)
        rows = np.random.default_rng(session.seed).permutation(len(session.data))[: recipe.fit_rows]
        logits = teacher.logits()[torch.from_numpy(rows)]
        evidence = observe(model, logits, session.data.subset(rows), family, session)
        fit_gates(model, evidence, recipe, f"{name}: gates")
        return model
