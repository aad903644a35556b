"""A rival: every input runs the first layers, as many as the budget says."""

from dataclasses import dataclass
from typing import ClassVar

from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.exits import Student
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.methods.one_route import check_whole, learn_route, straight_path
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import DISTILLED, of_length
from hadskip_export.trainers.teacher import Teacher


@dataclass(frozen=True)
class Budgeted:
    """The student starts from the teacher, whatever came before."""

    initialises_gates: ClassVar[bool] = False
    fits_threshold: ClassVar[bool] = False

    def check(self, recipe: Recipe, budget: float, config: EncoderConfig) -> None:
        check_whole("budgeted", budget)

    def settings(self, recipe: Recipe) -> frozenset[str]:
        return of_length(recipe) | DISTILLED | {"body_lr"}

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        return straight_path(recipe, budget, num_layers)

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        return []

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        return learn_route(tuple(range(1, int(leg.budget) + 1)), teacher, leg, session)
