"""A rival: every input runs the best set of layers, or the one that was asked for."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.exits import Student
from hadskip_export.routing.families import Draw
from hadskip_export.routing.routes import Route, is_route
from hadskip_export.support.errors import BudgetError
from hadskip_export.trainers.gate_fitting import observe
from hadskip_export.trainers.methods.one_route import check_whole, learn_route, straight_path, student_of
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import DISTILLED, of_length
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.teacher import Teacher

SEARCH_EPOCHS = 1
MOST_ROUTES = 200  # that the search compares


@dataclass(frozen=True)
class Static:
    """The student starts from the teacher, whatever came before.

    Args:
        route: the layers to run; searched for if left out.
    """

    route: Route | None = None

    initialises_gates: ClassVar[bool] = False
    fits_threshold: ClassVar[bool] = False

    def check(self, recipe: Recipe, budget: float, config: EncoderConfig) -> None:
        check_whole("static", budget)
        if self.route is not None and (len(self.route) != budget or not is_route(self.route, config.num_layers)):
            layers = ",".join(map(str, self.route))
            raise BudgetError(f"--route {layers}: expected {budget:g} of the layers 1 to {config.num_layers}")

    def settings(self, recipe: Recipe) -> frozenset[str]:
        return of_length(recipe) | DISTILLED | {"body_lr"}

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        return straight_path(recipe, budget, num_layers)

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        return []

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        route = self.route or find_route(teacher, leg.budget, session)
        return learn_route(route, teacher, leg, session)


def find_route(teacher: Teacher, budget: float, session: Session) -> Route:
    """The best route of its size, found before it is trained by itself: an epoch on all of them at random, then the
    one that is nearest to the teacher on the held-out slice."""
    student = student_of(teacher, session)
    candidates = fixed_routes(len(student.gates), round(budget))
    distil(student, teacher, Draw(candidates, session.seed), session, epochs=SEARCH_EPOCHS, phase="search")
    held_out = Teacher(teacher.model, session.held_out, session.device)
    found = observe(student, held_out.logits(), session.held_out, candidates, session).divergence
    session.log(phase="search", divergence={str(route): float(cost.mean()) for route, cost in found.items()})
    return min(candidates, key=lambda route: float(found[route].mean()))


def fixed_routes(num_layers: int, size: int, seed: int = 0) -> list[Route]:
    """All routes of `size` layers or, where there are too many, a random choice."""
    if math.comb(num_layers, size) <= MOST_ROUTES:
        return list(itertools.combinations(range(1, num_layers + 1), size))
    random, chosen = np.random.default_rng(seed), set[Route]()
    while len(chosen) < MOST_ROUTES:
        chosen.add(tuple(sorted(int(layer) + 1 for layer in random.choice(num_layers, size, replace=False))))
    return sorted(chosen)
