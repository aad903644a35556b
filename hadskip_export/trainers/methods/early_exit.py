"""What the methods with exits share: one body for all budgets, and an exit after each layer.

Their exits learn from the teacher, too, as all students here do, unless the recipe says `alpha1 = 0`. Where they begin,
how many epochs they have and at which rate is not what their authors published: it is what the others have.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hadskip_export.data.problems import SINGLE
from hadskip_export.modeling.encoder import EncoderConfig
from hadskip_export.modeling.exits import ExitClassifier, ExitKind, Student
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.families import prefixes
from hadskip_export.routing.routes import Route
from hadskip_export.support.errors import BudgetError, RecipeError
from hadskip_export.trainers.exits import Among, train_exits
from hadskip_export.trainers.recipe import Recipe
from hadskip_export.trainers.schedule import Leg, all_epochs
from hadskip_export.trainers.session import Session
from hadskip_export.trainers.settings import of_length
from hadskip_export.trainers.teacher import Teacher


@dataclass(frozen=True)
class EarlyExit:
    """The student starts from the teacher, whatever came before. Exits weigh alike unless a method says otherwise.

    Attributes:
        kind, criterion: see `ExitClassifier`.
        jumps: whether it has gates, too.
        body_learns: or the exits alone, the teacher's own head excepted.
        learns_labels: or from the teacher alone.
    """

    initialises_gates: ClassVar[bool] = False
    fits_threshold: ClassVar[bool] = True
    kind: ClassVar[ExitKind] = "head"
    criterion: ClassVar[str] = "entropy"
    jumps: ClassVar[bool] = False
    body_learns: ClassVar[bool] = True
    learns_labels: ClassVar[bool] = True

    def check(self, recipe: Recipe, budget: float, config: EncoderConfig) -> None:
        if config.problem_type != SINGLE and not CRITERIA[self.criterion].of_gate:
            raise RecipeError(f"--method: exits are left by where a class is sure, and this is {config.problem_type}")
        if config.num_layers < 2:
            raise RecipeError("--method: a model of one layer has no exit before its own head")
        if budget < 1:
            raise BudgetError(f"--budget {budget:g}: the first exit comes after a layer; give at least 1 layer")
        if not self.learns_labels and not recipe.alpha1:
            raise RecipeError("alpha1=0: the exits of this method learn from the teacher's predictions alone")

    def settings(self, recipe: Recipe) -> frozenset[str]:
        return of_length(recipe) | {"alpha1", "body_lr" if self.body_learns else "exit_lr"}

    def path(self, recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
        points = sorted({budget, *map(float, range(1, num_layers + 1))}, reverse=True)
        return [Leg(float(num_layers), budget, all_epochs(recipe, budget, num_layers), tuple(points))]

    def family(self, recipe: Recipe, leg: Leg, num_layers: int) -> list[Route]:
        return prefixes(list(range(1, num_layers + 1)), num_layers)

    def learn(self, model: Student, teacher: Teacher, leg: Leg, session: Session) -> Student:
        student, recipe = self.begin(teacher, session), session.recipe
        student.classifier.requires_grad_(self.body_learns)
        train_exits(
            student, teacher, self.weights, session, labels=self.learns_labels,
            rate=recipe.body_lr if self.body_learns else recipe.exit_lr,
            epochs=leg.epochs, phase=leg.name, among=self.among(student, session),
        )  # fmt: skip
        return student

    def begin(self, teacher: Teacher, session: Session) -> ExitClassifier:
        """A copy of the teacher with exits, before it learns."""
        torch.manual_seed(session.seed + 1)
        body = copy.deepcopy(teacher.model).requires_grad_(True)
        gate_width = session.recipe.gate_width
        return ExitClassifier(body, self.kind, self.criterion, gate_width, self.jumps).to(session.device)

    def among(self, student: ExitClassifier, session: Session) -> Among | None:
        """What exits learn from each other; None where nothing."""
        return None

    def weights(self, num_exits: int, done: float, number: int) -> Tensor:
        """What each exit's loss counts for, float [L]; the last one is the model's own head.

        Args:
            done: the share of the training that lies behind.
            number: of the batch, from 0.
        """
        return torch.ones(num_exits)


def by_depth(num_exits: int) -> Tensor:
    """`l / sum(l)`, float [L]."""
    depth = torch.arange(1.0, num_exits + 1)
    return depth / depth.sum()


def all_but_the_last(num_exits: int) -> Tensor:
    """Of a model whose own head stays as it is, float [L]."""
    return torch.cat((torch.ones(num_exits - 1), torch.zeros(1)))
