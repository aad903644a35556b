"""A rival: every input runs the best set of layers, or the one that was asked for."""

from dataclasses import dataclass
from typing import ClassVar

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw
from hadskip_export.routing.routes import Route, is_route
from hadskip_export.support.errors import BudgetError
from hadskip_export.trainers.evaluation import fixed_routes
from hadskip_export.trainers.gate_fitting import observe
from hadskip_export.trainers.methods.one_route import check_whole, learn_route, straight_path, student_of
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.teacher import Teacher

SEARCH_EPOCHS = 1


@dataclass(frozen=True)
class Static:
    """The student starts from the teacher, whatever came before.

    Args:
        route: the layers to run; searched for if left out.
    """

    route: Route | None = None

    initialises_gates: ClassVar[bool] = False
    fits_threshold: ClassVar[bool] = False

    def check(self, budget: float, num_layers: int) -> None:
        check_whole("static", budget)
        if self.route is not None and (len(self.route) != budget or not is_route(self.route, num_layers)):
            layers = ",".join(map(str, self.route))
            raise BudgetError(f"--route {layers}: expected {budget:g} of the layers 1 to {num_layers}")

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        return straight_path(recipe, budget, num_layers)

    def learn(self, model: GatedClassifier, teacher: Teacher, leg: Leg, session: Session) -> GatedClassifier:
        route = self.route or find_route(teacher, leg.budget, session)
        return learn_route(route, teacher, leg, session)


def find_route(teacher: Teacher, budget: float, session: Session) -> Route:
    """The best route of its size, found before it is trained by itself: an epoch on all of them at random, then the
    one that is nearest to the teacher on the held-out slice."""
    student = student_of(teacher, session)
    candidates = fixed_routes(len(student.gates), round(budget), [])
    draw = Draw(candidates, len(student.gates), session.seed)
    distil(student, teacher, draw, session, epochs=SEARCH_EPOCHS, label="search")
    held_out = Teacher(teacher.model, session.held_out, session.device)
    found = observe(student, held_out.logits(), session.held_out, candidates, session).divergence
    session.log(phase="search", divergence={str(route): float(cost.mean()) for route, cost in found.items()})
    return min(candidates, key=lambda route: float(found[route].mean()))
