"""Who runs which layer. A router lives for one call; from the gates' margins it decides, layer by layer, which rows of
the batch run it."""

from typing import Protocol

import numpy as np


class Router(Protocol):
    def select(self, index: int, margin: np.ndarray) -> np.ndarray:
        """Which rows run layer `index` (from 0).

        Args:
            margin: of the layer's gate, float32 [b]; zeros where there are no gates.

        Returns:
            bool [b], made for this call.
        """
        ...


class GateRouter:
    """A layer runs where its gate's margin is above the threshold."""

    def __init__(self, threshold: float):
        self._threshold = threshold

    def select(self, index: int, margin: np.ndarray) -> np.ndarray:
        return margin > self._threshold


class StaticRouter:
    """Every row runs the same layers.

    Args:
        route: the layers that run, bool [L].
    """

    def __init__(self, route: np.ndarray):
        self._route = route

    def select(self, index: int, margin: np.ndarray) -> np.ndarray:
        return np.full(len(margin), self._route[index])


class ForcedRouter:
    """Rows run what they are told, whatever their gates say, which are asked all the same. For measurements.

    Args:
        routes: the rows' layers, bool [b, L].
    """

    def __init__(self, routes: np.ndarray):
        self._routes = routes

    def select(self, index: int, margin: np.ndarray) -> np.ndarray:
        return self._routes[:, index].copy()


class CappedRouter:
    """Another router, until a row has run `max_layers` layers; from then on that row skips."""

    def __init__(self, router: Router, max_layers: int):
        self._router = router
        self._max_layers = max_layers
        self._ran: np.ndarray | None = None

    def select(self, index: int, margin: np.ndarray) -> np.ndarray:
        if self._ran is None:
            self._ran = np.zeros(len(margin), np.int64)
        rows = self._router.select(index, margin)
        rows &= self._ran < self._max_layers
        self._ran += rows
        return rows
