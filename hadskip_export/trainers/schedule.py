"""The path through the budgets (paper, section 4.3, homotopic optimisation)."""

import math
from dataclasses import dataclass

from hadskip_export.routing.budgets import budget_name
from hadskip_export.trainers.recipe import Recipe


@dataclass(frozen=True)
class Leg:
    """One stretch of the path, that of one student: `epochs` of training at `budget`, coming from `previous`.

    Budgets are in layers. `points`: those the student is to keep, each by a threshold of its own, in descending order;
    its own alone if left out.
    """

    previous: float
    budget: float
    epochs: int
    points: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What is said of it while it is trained."""
        return "stage III, all budgets" if self.points else f"stage III, budget {budget_name(self.budget)}"

    @property
    def kept(self) -> tuple[float, ...]:
        return self.points or (self.budget,)


def budget_path(recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
    """The way the recipe takes from all layers to the budget, with a student for each on the way."""
    budgets = [budget] if recipe.schedule == "direct" else homotopy(budget, num_layers, recipe.schedule_step)
    epochs = [*(recipe.epochs for _ in budgets[1:]), recipe.last_epochs]
    return [Leg(*leg) for leg in zip([float(num_layers), *budgets[:-1]], budgets, epochs, strict=True)]


def all_epochs(recipe: Recipe, budget: float, num_layers: int) -> int:
    """How often the recipe's students see the training data on the way to the budget."""
    if recipe.routing == "nested" and recipe.body == "shared":
        return recipe.shared_epochs
    return sum(leg.epochs for leg in budget_path(recipe, budget, num_layers))


def homotopy(budget: float, num_layers: int, step: float = 1.0) -> list[float]:
    """L, L - step, ..., down to the budget, each of which starts from the weights of the one before.

    Rounded, for budgets name folders: 3.7, not 3.6999999999999997.
    """
    passed = math.ceil(round((num_layers - budget) / step, 9))
    path = [round(num_layers - index * step, 9) for index in range(passed)]
    return [*(value for value in path if value > budget), budget]


def glide(previous: float, budget: float, step: int, steps: float) -> float:
    """The penalty's target at `step` (from 0): from one budget to the next in `steps` steps, then constant."""
    share = min(1.0, (step + 1) / steps) if steps > 0 else 1.0
    return previous + (budget - previous) * share
