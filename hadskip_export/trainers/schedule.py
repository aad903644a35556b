"""Budgets and the path through them (paper, section 4.3, homotopic optimisation)."""

import math

from hadskip_export.errors import BudgetError


def resolve_budget(budget: float, num_layers: int) -> float:
    """A budget as a number of layers: below 1 it is a share of them, else a number, fractions allowed.

    Raises:
        BudgetError: not above 0, or above the number of layers.
    """
    layers = round(budget * num_layers, 9) if budget < 1 else budget  # 0.7 of 6 is 4.2, not 4.199999999999999
    if not 0 < layers <= num_layers:  # also refuses NaN
        raise BudgetError(
            f"--budget {budget:g}: the model has {num_layers} layers; expected 0 < budget <= {num_layers}"
        )
    return layers


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


def budget_name(budget: float) -> str:
    """The budget as it names a folder: `3`, `4.5`."""
    return str(int(budget)) if float(budget).is_integer() else str(budget)
