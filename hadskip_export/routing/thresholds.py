"""The threshold at which hard gates meet a budget, on texts whose labels play no part.

One threshold moves every gate. Mean layers is not monotone in it (opening an early gate changes what later gates see),
so it is searched on a grid and refined around the best crossing. The texts should be like those of deployment: a
threshold met on SST-2's training phrases runs a tenth more layers on its sentences.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

GRID_POINTS = 17
BISECTIONS = 16

# (some inputs' numbers int [k], threshold) -> routes bool [k, L] and the margins met on the way float32 [k, L]
Evaluate = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]


class LayersRun(Protocol):
    """Mean layers as a function of the threshold, which is rounded to float32, as margins are."""

    @property
    def margins(self) -> np.ndarray:
        """Some that were met, float32, any shape: they say where thresholds make a difference."""
        ...

    def mean_layers(self, threshold: float) -> float: ...

    def around(self, threshold: float) -> tuple[float, float]:
        """The interval around `threshold`, its end excluded, in which no input's route changes."""
        ...


@dataclass(frozen=True)
class EveryThreshold:
    """Every input's route at every threshold: step functions, given by their pieces.

    Args:
        count: how many inputs there are.
        rows: whose piece it is, int [m].
        low, high: where it is, low <= threshold < high, float32 [m].
        layers: what runs there, bool [m, L].
        margins: see `LayersRun`.
    """

    count: int
    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    layers: np.ndarray
    margins: np.ndarray

    def routes(self, threshold: float) -> np.ndarray:
        """bool [n, L]"""
        here = self._at(threshold)
        taken = np.zeros((self.count, self.layers.shape[1]), bool)
        taken[self.rows[here]] = self.layers[here]
        return taken

    def mean_layers(self, threshold: float) -> float:
        return float(self.layers[self._at(threshold)].sum() / self.count)

    def around(self, threshold: float) -> tuple[float, float]:
        here = self._at(threshold)
        return float(self.low[here].max()), float(self.high[here].min())

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Where mean layers change: thresholds, ascending from minus infinity, and mean layers from each of them on."""
        layers = self.layers.sum(axis=1)
        ends = np.isfinite(self.high)
        at = np.concatenate((self.low, self.high[ends]))
        change = np.concatenate((layers, -layers[ends]))
        steps, which = np.unique(at, return_inverse=True)
        return steps, np.bincount(which, change).cumsum() / self.count

    def _at(self, threshold: float) -> np.ndarray:
        at = np.float32(threshold)
        return (self.low <= at) & (at < self.high)


@dataclass
class HardRoutes:
    """Mean layers as a function of the threshold, remembering what it has seen.

    An input keeps its route while the threshold stays at or above the largest margin it skipped at and below the
    smallest it ran at. So each evaluated route answers for an interval, and only inputs outside all of their
    intervals are run again.

    Args:
        evaluate: runs inputs with hard gates.
        count: how many inputs there are.
    """

    evaluate: Evaluate
    count: int
    intervals: list[list[tuple[float, float, int]]] = field(default_factory=list)  # per input: low <= t < high, layers
    margins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the first evaluation

    def __post_init__(self) -> None:
        self.intervals = [[] for _ in range(self.count)]

    def layers(self, threshold: float) -> np.ndarray:
        """Layers each input runs at `threshold`, int [n].

        Raises:
            ValueError: margins that are no numbers.
        """
        threshold = float(np.float32(threshold))
        unknown = np.array([row for row in range(self.count) if self._look_up(row, threshold) is None], int)
        if len(unknown):
            routes, margins = self.evaluate(unknown, threshold)
            if np.isnan(margins).any():
                raise ValueError("the gates' margins are no numbers")
            low = np.where(routes, -np.inf, margins).max(axis=1)
            high = np.where(routes, margins, np.inf).min(axis=1)
            for row, *interval in zip(unknown, low, high, routes.sum(axis=1), strict=True):
                self.intervals[row].append((float(interval[0]), float(interval[1]), int(interval[2])))
            if not len(self.margins):
                self.margins = margins[np.isfinite(margins)]  # others are of layers that exits do not decide on
        return np.array([self._look_up(row, threshold) for row in range(self.count)])

    def mean_layers(self, threshold: float) -> float:
        return float(self.layers(threshold).mean())

    def around(self, threshold: float) -> tuple[float, float]:
        """Only of a threshold that was asked before."""
        threshold = float(np.float32(threshold))
        found = (next((i[0], i[1]) for i in known if i[0] <= threshold < i[1]) for known in self.intervals)
        lows, highs = zip(*found, strict=True)
        return max(lows), min(highs)

    def _look_up(self, row: int, threshold: float) -> int | None:
        return next((layers for low, high, layers in self.intervals[row] if low <= threshold < high), None)


def find_threshold(routes: LayersRun, budget: float) -> float:
    """The threshold at which mean layers meet `budget`, in logits.

    Where they cross it more than once, the crossing nearest to 0, where training left the gates; where they never do,
    the grid's closest. Where they jump over it and are as near on both sides, the side of more layers. The value is
    the midpoint between neighbouring margins: one that lies exactly on an input's margin would flip with the last bit.
    """
    routes.mean_layers(0.0)
    met = np.quantile(routes.margins, np.linspace(0, 1, GRID_POINTS)) if routes.margins.size else []
    grid = np.unique(np.append(met, 0.0))
    grid = np.concatenate([[grid[0] - 1], grid, [grid[-1] + 1]])
    excess = np.array([routes.mean_layers(float(t)) - budget for t in grid])
    best = min(((abs(e), abs(t), t) for e, t in zip(excess, grid, strict=True)))[2]
    crossings = [i for i in range(len(grid) - 1) if excess[i] >= 0 > excess[i + 1] or excess[i] < 0 <= excess[i + 1]]
    if crossings:
        at = min(crossings, key=lambda i: abs(grid[i] + grid[i + 1]))
        best = _bisect(routes, budget, float(grid[at]), float(grid[at + 1]))
    return _between_margins(routes, float(best))


def _bisect(routes: LayersRun, budget: float, low: float, high: float) -> float:
    candidates = [low, high]
    rising = routes.mean_layers(low) < budget
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        candidates.append(middle)
        if (routes.mean_layers(middle) < budget) == rising:
            low = middle
        else:
            high = middle
    means = {threshold: routes.mean_layers(threshold) for threshold in candidates}
    return min(candidates, key=lambda threshold: (abs(means[threshold] - budget), -means[threshold]))


def _between_margins(routes: LayersRun, threshold: float) -> float:
    """The middle of the interval around `threshold` in which no input's route changes."""
    low, high = routes.around(threshold)
    if np.isinf(low) or np.isinf(high):  # no margin on that side: keep a distance of one logit from the other
        low, high = max(low, min(threshold, high) - 2), min(high, max(threshold, low) + 2)
    return float(np.float32((low + high) / 2))


def crossing(means: np.ndarray, budget: float, near: int) -> tuple[int, int] | None:
    """Between which two neighbouring steps mean layers come to the budget, the nearest ones to step `near`: twice the
    same where it has the budget; None where they never do.

    Args:
        means: by step, float [m].
    """
    excess = means - budget
    met = [(int(step), int(step)) for step in np.flatnonzero(excess == 0)]
    jumps = [(int(step), int(step) + 1) for step in np.flatnonzero(excess[:-1] * excess[1:] < 0)]
    return min((*met, *jumps), key=lambda sides: abs(sides[0] - near), default=None)
