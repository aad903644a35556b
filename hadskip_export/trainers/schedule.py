"""The path through the budgets (paper, section 4.3, homotopic optimisation)."""

import math
from dataclasses import dataclass

from hadskip_export.trainers.recipe import Recipe


@dataclass(frozen=True)
class Leg:
    """One stretch of the path: `epochs` of training at `budget`, coming from `previous`; budgets are in layers."""

    previous: float
    budget: float
    epochs: int


def budget_path(recipe: Recipe, budget: float, num_layers: int) -> list[Leg]:
    """The way the recipe takes from all layers to the budget."""
    budgets = [budget] if recipe.schedule == "direct" else homotopy(budget, num_layers, recipe.schedule_step)
    epochs = [*(recipe.epochs for _ in budgets[1:]), recipe.last_epochs]
    return [Leg(*leg) for leg in zip([float(num_layers), *budgets[:-1]], budgets, epochs, strict=True)]


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
