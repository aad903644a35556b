"""Who runs which layer. A router lives for one call; it answers, layer by layer, which rows of the batch run it."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

Gate = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Router(Protocol):
    def select(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Which rows run layer `index` (from 0).

        Args:
            hidden_states: float32 [b, s, H], what the layer would read.
            attention_mask: int64 [b, s].

        Returns:
            bool [b], made for this call. Whoever holds rows back clears them in it: they count as not run.
        """
        ...


class GateRouter:
    """Each gate is an engine of its own, asked in turn: a layer runs where its margin is above the threshold."""

    def __init__(self, gates: Sequence[Gate], threshold: float):
        self._gates = gates
        self._threshold = threshold

    def select(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._gates[index](hidden_states, attention_mask) > self._threshold


class LookaheadRouter:
    """One engine answers for all gates. A skipped layer leaves a row unchanged, so its margins hold until a layer
    runs it: rows are asked again only then. The routes are those of `GateRouter`."""

    def __init__(self, gates: Gate, num_layers: int, threshold: float):
        self._gates = gates
        self._threshold = threshold
        self._margins = np.zeros((0, num_layers), np.float32)
        self._stale = np.zeros(0, bool)

    def select(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        if index == 0 or self._stale.all():
            self._margins = self._gates(hidden_states, attention_mask)
        elif self._stale.any():
            self._margins[self._stale] = self._gates(hidden_states[self._stale], attention_mask[self._stale])
        self._stale = self._margins[:, index] > self._threshold
        return self._stale


class StaticRouter:
    """Every row runs the same layers; no gate is asked.

    Args:
        route: the layers that run, bool [L].
    """

    def __init__(self, route: np.ndarray):
        self._route = route

    def select(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return np.full(len(hidden_states), self._route[index])


class CappedRouter:
    """Another router, until a row has run `max_layers` layers; from then on that row skips."""

    def __init__(self, router: Router, max_layers: int):
        self._router = router
        self._max_layers = max_layers
        self._ran: np.ndarray | None = None

    def select(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        if self._ran is None:
            self._ran = np.zeros(len(hidden_states), np.int64)
        rows = self._router.select(index, hidden_states, attention_mask)
        rows &= self._ran < self._max_layers
        self._ran += rows
        return rows


class ForcedRouter:
    """Another router is asked, so that its gates are paid for, and overruled. For measurements.

    Args:
        routes: the rows' layers, bool [b, L].
    """

    def __init__(self, router: Router, routes: np.ndarray):
        self._router = router
        self._routes = routes

    def select(self, index: int, hidden_states: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        rows = self._router.select(index, hidden_states, attention_mask)
        rows[:] = self._routes[:, index]  # in it, so that a look-ahead knows which rows change
        return rows
