"""Whether inputs are still like those that an operating point was met on, by how many layers they run."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hadskip_export.routing.points import Point

# What is usually said of the index: below .1 nothing has changed, above .25 much has.
SOME, MUCH = 0.1, 0.25
FEWEST, RECENT = 200, 1000  # inputs that say anything, for of fewer the index is chance; and those looked back at
KNOWN = 0.98  # of the texts
RARE = 1e-3  # counts as the share of a number of layers that was never seen

Shares = Mapping[int, float]  # by number of layers


@dataclass(frozen=True)
class Drift:
    """
    Args:
        budget: of the operating point.
        inputs: how many were looked at.
        index: see `stability_index`.
        expected, seen: shares of the texts that the point was met on, and of these inputs.
    """

    budget: float
    inputs: int
    index: float
    expected: Shares
    seen: Shares

    @property
    def is_much(self) -> bool:
        return self.index > MUCH


def drift_from(point: Point, layers: Iterable[int]) -> Drift | None:
    """Of inputs that ran so many layers each; None of too few, or of a point that does not say what texts ran.

    Args:
        point: the one that they were computed at.
    """
    return _drift(point.budget, expected_layers(point), Counter(layers))


def _drift(budget: float, expected: Shares, counts: Counter[int]) -> Drift | None:
    total = counts.total()
    if total < FEWEST or not expected:
        return None
    seen = {number: count / total for number, count in counts.items()}
    return Drift(budget, total, stability_index(expected, seen), expected, seen)


def expected_layers(point: Point) -> Shares:
    """What the texts of an operating point ran. Of a bundle that has their commonest routes alone, and of these not
    nearly all, nothing is known: the others would be taken for a change."""
    total = sum(point.shares.values())
    return {} if total < KNOWN else {number: share / total for number, share in point.shares.items()}


def stability_index(expected: Shares, seen: Shares) -> float:
    """The population stability index, 0 where both are alike: the sum of `(seen - expected) ln(seen / expected)`
    (Siddiqi, Credit Risk Scorecards, 2006)."""
    pairs = ((max(expected.get(kind, 0), RARE), max(seen.get(kind, 0), RARE)) for kind in {*expected, *seen})
    return math.fsum((now - before) * math.log(now / before) for before, now in pairs)


class DriftWatch:
    """The last inputs of a service at one operating point, counted as they come and go: every request asks."""

    def __init__(self, point: Point):
        self._budget, self._expected = point.budget, expected_layers(point)
        self._layers: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        self.is_much = False

    def saw(self, layers: Iterable[int]) -> Drift | None:
        for number in layers:
            self._layers.append(number)
            self._counts[number] += 1
            if len(self._layers) > RECENT:
                self._counts[self._layers.popleft()] -= 1
        return _drift(self._budget, self._expected, self._counts)

    def turned(self, drift: Drift) -> bool:
        """Whether it has just become much. It is so until hardly anything is left of it: no line for each swing."""
        before, self.is_much = self.is_much, drift.is_much or (self.is_much and drift.index > SOME)
        return self.is_much and not before
