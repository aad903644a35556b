"""Budgets: layers per input on average."""

from hadskip_export.support.errors import BudgetError
from hadskip_export.support.values import real_number
from hadskip_export.support.words import counted

OFF_BUDGET = 0.03  # share of a budget; thresholds that run more or fewer layers do not keep it


def resolve_budget(budget: float, num_layers: int) -> float:
    """A budget as a number of layers: below 1 it is a share of them, else a number, fractions allowed.

    Raises:
        BudgetError: no number, not above 0, or above the number of layers.
    """
    budget = real_number("budget", budget)
    layers = round(budget * num_layers, 9) if budget < 1 else budget  # 0.7 of 6 is 4.2, not 4.199999999999999
    if not 0 < layers <= num_layers:  # also refuses NaN
        raise BudgetError(
            f"--budget {budget:g}: the model has {counted(num_layers, 'layer')}; expected 0 < budget <= {num_layers}"
        )
    return layers


def budget_name(budget: float) -> str:
    """The budget as it names a folder: `3`, `4.5`."""
    return str(int(budget)) if float(budget).is_integer() else str(budget)


def keeps(budget: float, mean_layers: float) -> bool:
    """Whether so many layers on average are near enough to the budget."""
    return abs(mean_layers - budget) <= OFF_BUDGET * budget
