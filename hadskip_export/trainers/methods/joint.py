"""Stage III as the paper has it: gates and body learn together while the budget shrinks."""

from dataclasses import dataclass
from typing import ClassVar

from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.exits import Student
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg, budget_path
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import DISTILLED, EXPLORED, GATES, of_length
from hadskip_export.trainers.stages import train_jointly
from hadskip_export.trainers.teacher import Teacher


@dataclass(frozen=True)
class Joint:
    """Every budget goes on from the student of the one before."""

    initialises_gates: ClassVar[bool] = True
    fits_threshold: ClassVar[bool] = True

    def check(self, recipe: Recipe, budget: float, config: EncoderConfig) -> None:
        """Takes any budget."""

    def settings(self, recipe: Recipe) -> frozenset[str]:
        own = {"stage2_epochs", "body_lr", "glide", "beta", "penalty_unit"}
        return of_length(recipe) | GATES | EXPLORED | DISTILLED | own

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        return budget_path(recipe, budget, num_layers)

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        return []

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        assert isinstance(model, GatedClassifier)
        train_jointly(model, teacher, leg, session)
        return model
