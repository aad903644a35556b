"""The contract of a training method: how a student comes to its routes."""

from typing import ClassVar, Protocol

from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.exits import Student
from hadskip_export.routing.routes import Route
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.teacher import Teacher


class Method(Protocol):
    """A frozen dataclass whose fields are the options of `train` that the method takes, each with a default."""

    initialises_gates: ClassVar[bool]  # whether stage II comes first, where the recipe has epochs for it
    fits_threshold: ClassVar[bool]  # whether a threshold on its gates' margins makes the mean layers meet the budget

    def check(self, recipe: Recipe, budget: float, config: EncoderConfig) -> None:
        """Called before anything is trained.

        Raises:
            BudgetError: the method cannot have this budget, in layers, or not with its options.
            RecipeError: it cannot have the recipe.
        """
        ...

    def settings(self, recipe: Recipe) -> frozenset[str]:
        """Those of the recipe that its student comes of, but for the ones that every training reads, see
        `trainers.settings`."""
        ...

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        """The students on the way, the last of which is that of `budget`. Each gets a checkpoint."""
        ...

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        """The routes that the student's body is taught; none where they are not known beforehand."""
        ...

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        """Trains the student of `leg.budget`.

        Args:
            model: the student of `leg.previous`; the teacher with new gates, perhaps of stage II, where there is none.
                It may be changed, and returned.
        """
        ...
