"""Operating points: the thresholds at which a model keeps a budget, and what it was seen to do there."""

from collections.abc import Sequence
from dataclasses import dataclass

from hadskip_export.routing.budgets import budget_name, resolve_budget
from hadskip_export.routing.routes import Route, RouteStatistics
from hadskip_export.support.errors import BudgetError


@dataclass(frozen=True)
class Point:
    """One budget, met on some texts.

    Args:
        budget: mean layers asked for.
        thresholds: of every gate's margin, in logits, [L]; empty where every input takes one route.
        data: which texts it was met on.
        mean_layers, routes: what those texts ran; at most ten routes with their shares, the commonest first.
        layers_run: the share of them that ran 0, 1, ..., L layers, [L + 1]; empty where nobody counted.
        metric, full_metric: of the task on those texts, there and with all layers; None without labels.
    """

    budget: float
    thresholds: tuple[float, ...]
    data: str
    mean_layers: float
    routes: tuple[tuple[Route, float], ...] = ()
    metric: float | None = None
    full_metric: float | None = None
    layers_run: tuple[float, ...] = ()

    @classmethod
    def met(cls, budget: float, thresholds: Sequence[float], data: str, seen: RouteStatistics, **figures) -> "Point":
        """The point at which texts took the routes of `seen`."""
        routes = tuple((tuple(route), share) for route, share in seen.commonest)
        shares = tuple(seen.histogram)
        return cls(budget, tuple(thresholds), data, seen.mean_layers, routes=routes, layers_run=shares, **figures)

    @property
    def shares(self) -> dict[int, float]:
        """The share of the texts by number of layers run; where only routes tell, as far as these do."""
        if self.layers_run:
            return {layers: share for layers, share in enumerate(self.layers_run) if share}
        found: dict[int, float] = {}
        for route, share in self.routes:
            found[len(route)] = found.get(len(route), 0.0) + share
        return found


def thresholds_at(points: Sequence[Point], budget: float, num_layers: int, in_steps: bool = False) -> tuple[float, ...]:
    """Thresholds for a budget: those of its point, or between its two neighbours as far as it is between theirs.

    Args:
        points: by ascending budget.
        budget: below 1 a share of the layers.
        in_steps: margins come in steps, and what lies between two thresholds is one of them, or neither.

    Raises:
        BudgetError: no budget of the model, or one beyond those of the points or, `in_steps`, between them.
    """
    wanted = resolve_budget(budget, num_layers)
    below = next((point for point in reversed(points) if point.budget <= wanted), None)
    above = next((point for point in points if point.budget >= wanted), None)
    between = in_steps and below is not above
    if below is None or above is None or between:
        have = ", ".join(budget_name(point.budget) for point in points)
        raise BudgetError(
            f"budget {wanted:g}: the bundle has operating points for {have}; add it with hadskip-export calibrate"
            f" BUNDLE --data FILE --budget {wanted:g} --write"
        )
    if above.budget == below.budget:
        return below.thresholds
    share = (wanted - below.budget) / (above.budget - below.budget)
    return tuple(low + share * (high - low) for low, high in zip(below.thresholds, above.thresholds, strict=True))


def with_point(points: Sequence[Point], added: Point) -> tuple[Point, ...]:
    """The points with one more, in the place of that of its budget, by ascending budget."""
    kept = [point for point in points if point.budget != added.budget]
    return tuple(sorted((*kept, added), key=lambda point: point.budget))
