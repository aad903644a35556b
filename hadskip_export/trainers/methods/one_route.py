"""What the methods without gates share: every input takes one route, learned from the teacher on."""

import copy

from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.families import Draw
from hadskip_export.routing.routes import Route
from hadskip_export.support.errors import BudgetError
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg, all_epochs
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.stages import distil
from hadskip_export.trainers.teacher import Teacher


def check_whole(method: str, budget: float) -> None:
    """
    Raises:
        BudgetError: no whole number of layers.
    """
    if not float(budget).is_integer():
        raise BudgetError(
            f"--budget {budget:g}: --method {method} runs the same layers for all, a whole number of them"
        )


def straight_path(recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
    """Straight to the budget, with the epochs of the recipe's whole way: a fair comparison sees as many samples."""
    return [Leg(num_layers, budget, all_epochs(recipe, budget, num_layers))]


def student_of(teacher: Teacher, session: Session, route: Route | None = None) -> GatedClassifier:
    """The teacher's weights with new gates, or with the route fixed in place of them."""
    body = copy.deepcopy(teacher.model).requires_grad_(True)
    return GatedClassifier(body, session.recipe.gate_width, fixed_route=route).to(session.device)


def learn_route(route: Route, teacher: Teacher, leg: Leg, session: Session) -> GatedClassifier:
    """The student that runs `route` for every input."""
    student = student_of(teacher, session, route)
    phase = f"stage III, layers {' '.join(map(str, route))}"
    distil(student, teacher, Draw([route], session.seed), session, epochs=leg.epochs, phase=phase)
    return student
