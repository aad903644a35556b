"""Who runs which layer. A policy begins anew with every call, for a decision may depend on those before it.

Layer by layer in plain Python: right after an engine has run, one call of a NumPy function takes longer than all of
this for a row.
"""

from collections.abc import Callable, Sequence
from ctypes import c_float
from typing import Protocol

import numpy as np


class Decisions(Protocol):
    """What a policy decides in one call, and remembers of it."""

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        """Which rows run layer `index` (from 0); asked once for each layer, in their order.

        Args:
            margins: of the layer's gate, for each row; zeros where there are no gates.
        """
        ...


class Policy(Protocol):
    def start(self, rows: int) -> Decisions:
        """Begins a call of so many rows."""
        ...

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        """The same for a model that decides by itself: of each row the threshold of each gate, float32 [b, L], and the
        most layers that it runs."""
        ...


class GatePolicy:
    """A layer runs where its gate's margin is above the gate's threshold, both of them in float32."""

    def __init__(self, thresholds: Sequence[float]):
        self._thresholds = [c_float(threshold).value for threshold in thresholds]  # beyond float32 is infinite

    def start(self, rows: int) -> Decisions:
        return self

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        threshold = self._thresholds[index]
        return [margin > threshold for margin in margins]

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        return np.tile(np.array(self._thresholds, np.float32), (rows, 1)), num_layers


class StaticPolicy:
    """Every row runs the same layers.

    Args:
        route: the layers that run, [L].
    """

    def __init__(self, route: Sequence[bool]):
        self._route = route

    def start(self, rows: int) -> Decisions:
        return self

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        return [self._route[index]] * len(margins)

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        return _thresholds(np.tile(np.array(self._route), (rows, 1))), num_layers


class ForcedPolicy:
    """Rows run what they are told, whatever their gates say, which are asked all the same. For measurements.

    Args:
        routes: the rows' layers, bool [b, L].
    """

    def __init__(self, routes: np.ndarray):
        self._routes = routes

    def start(self, rows: int) -> Decisions:
        return _Told(self._routes.T.tolist())

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        return _thresholds(self._routes), num_layers


class _Told:
    """Decisions that were made before the call, [L][b]."""

    def __init__(self, columns: list[list[bool]]):
        self._columns = columns

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        return self._columns[index]


class CappedPolicy:
    """Another policy, until a row has run `max_layers` layers; from then on that row skips."""

    def __init__(self, policy: Policy, max_layers: int):
        self._policy = policy
        self._max_layers = max_layers

    def start(self, rows: int) -> Decisions:
        return _Capped(self._policy.start(rows), [self._max_layers] * rows)

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        thresholds, most = self._policy.terms(rows, num_layers)
        return thresholds, min(most, self._max_layers)


class _Capped:
    """Decisions with a number of layers left for each row."""

    def __init__(self, decisions: Decisions, left: list[int]):
        self._decisions = decisions
        self._left = left

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        runs = [run and left > 0 for run, left in zip(self._decisions.rows(index, margins), self._left, strict=True)]
        self._left = [left - run for run, left in zip(runs, self._left, strict=True)]
        return runs


def _thresholds(routes: np.ndarray) -> np.ndarray:
    """Those that every margin, or none, is above, as long as margins are numbers."""
    return np.where(routes, np.float32(-np.inf), np.float32(np.inf))


# A bundle's own policy by the kind of its router, made of the gates' thresholds and the route for all, [L] both. To add
# one: a file with its class, and a line here.
POLICIES: dict[str, Callable[[Sequence[float], Sequence[bool]], Policy]] = {
    "gates": lambda thresholds, route: GatePolicy(thresholds),
    "upfront": lambda thresholds, route: GatePolicy(thresholds),
    "exits": lambda thresholds, route: GatePolicy(thresholds),
    "gated-exits": lambda thresholds, route: GatePolicy(thresholds),
    "static": lambda thresholds, route: StaticPolicy(route),
}
