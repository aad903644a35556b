"""The adaptive recipe: the body learns a family of nested routes first, then the gates are fitted to it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.exits import Student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import FAMILIES, Draw, count_routes, sizes_around
from hadskip_export.routing.routes import Route
from hadskip_export.support.errors import RecipeError
from hadskip_export.trainers.gate_fitting import fit_gates, observe
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg, budget_path
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import DISTILLED, EXPLORED, FITTED, GATES, SCHEDULED
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.teacher import Teacher

SMALLEST = 2  # layers of the shortest route of a shared body, if no budget asks for less
MOST_ROUTES = 300  # that can be observed in reasonable time


@dataclass(frozen=True)
class Nested:
    """One body for all budgets, or a body for each that goes on from that of the one before."""

    initialises_gates: ClassVar[bool] = True
    fits_threshold: ClassVar[bool] = True

    def check(self, recipe: Recipe, budget: float, config: EncoderConfig) -> None:
        num_layers = config.num_layers
        sizes = max((self._sizes(recipe, leg, num_layers) for leg in self.path(recipe, budget, num_layers)), key=len)
        if (count := count_routes(recipe.family, sizes, num_layers)) > MOST_ROUTES:
            raise RecipeError(
                f"family={recipe.family}: has {count:,} routes of {sizes[0]} to {sizes[-1]} of {num_layers} layers,"
                f" more than the {MOST_ROUTES} that gates can be fitted to; choose nested"
            )

    def settings(self, recipe: Recipe) -> frozenset[str]:
        found = GATES | FITTED | DISTILLED | {"body", "body_lr", "family"}
        found |= SCHEDULED | {"family_spread"} if recipe.body == "dedicated" else {"shared_epochs"}
        if self.initialises_gates:
            found |= {"stage2_epochs"} | (EXPLORED if recipe.stage2_epochs else frozenset())
        return found

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        if recipe.body == "dedicated":
            return budget_path(recipe, budget, num_layers)
        whole = range(min(SMALLEST, math.ceil(budget)), num_layers + 1)
        points = sorted({budget, *map(float, whole)}, reverse=True)
        return [Leg(float(num_layers), budget, recipe.shared_epochs, tuple(points))]

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        return FAMILIES[recipe.family](self._sizes(recipe, leg, num_layers), num_layers)

    def _sizes(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[int]:
        """Of a shared body all, from one below the budget on: there has to be a choice."""
        if recipe.body == "dedicated":
            return sizes_around(leg.budget, recipe.family_spread, num_layers)
        return list(range(max(1, min(SMALLEST, math.ceil(leg.budget) - 1)), num_layers + 1))

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        """First the body, on routes drawn from the family; then the gates, by backward induction."""
        assert isinstance(model, GatedClassifier)
        recipe = session.recipe
        family = self.family(recipe, leg, len(model.gates))
        distil(model, teacher, Draw(family, session.seed), session, epochs=leg.epochs, phase=leg.name)
        rows = np.random.default_rng(session.seed).permutation(len(session.data))[: recipe.fit_rows]
        logits = teacher.logits()[torch.from_numpy(rows)]
        evidence = observe(model, logits, session.data.subset(rows), family, session)
        fit_gates(model, evidence, recipe, f"{leg.name}: gates")
        return model
