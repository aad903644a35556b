"""Who runs which layer. From the gates' margins a router decides, layer by layer, which rows of a batch run it.

Layer by layer in plain Python: right after an engine has run, one call of a NumPy function takes longer than all of
this for a row.
"""

from collections.abc import Sequence
from ctypes import c_float
from functools import cached_property
from typing import Protocol

import numpy as np


class Router(Protocol):
    def select(self, index: int, margin: Sequence[float], routes: Sequence[Sequence[bool]]) -> list[bool]:
        """Which rows run layer `index` (from 0).

        Args:
            margin: of the layer's gate, for each row; zeros where there are no gates.
            routes: who ran which layer so far, [L][b].
        """
        ...

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        """The same in the terms of `Conditional`: of each row the threshold of each gate, float32 [b, L], and the most
        layers."""
        ...


class GateRouter:
    """A layer runs where its gate's margin is above the threshold, both of them in float32."""

    def __init__(self, threshold: float):
        self._threshold = c_float(threshold).value  # beyond float32 is infinite

    def select(self, index: int, margin: Sequence[float], routes: Sequence[Sequence[bool]]) -> list[bool]:
        return [value > self._threshold for value in margin]

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        return np.full((rows, num_layers), self._threshold, np.float32), num_layers


class StaticRouter:
    """Every row runs the same layers.

    Args:
        route: the layers that run, [L].
    """

    def __init__(self, route: Sequence[bool]):
        self._route = route

    def select(self, index: int, margin: Sequence[float], routes: Sequence[Sequence[bool]]) -> list[bool]:
        return [self._route[index]] * len(margin)

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        return _thresholds(np.tile(np.array(self._route), (rows, 1))), num_layers


class ForcedRouter:
    """Rows run what they are told, whatever their gates say, which are asked all the same. For measurements.

    Args:
        routes: the rows' layers, bool [b, L].
    """

    def __init__(self, routes: np.ndarray):
        self._routes = routes

    @cached_property
    def _columns(self) -> list[list[bool]]:
        return self._routes.T.tolist()

    def select(self, index: int, margin: Sequence[float], routes: Sequence[Sequence[bool]]) -> list[bool]:
        return self._columns[index]

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        return _thresholds(self._routes), num_layers


class CappedRouter:
    """Another router, until a row has run `max_layers` layers; from then on that row skips."""

    def __init__(self, router: Router, max_layers: int):
        self._router = router
        self._max_layers = max_layers

    def select(self, index: int, margin: Sequence[float], routes: Sequence[Sequence[bool]]) -> list[bool]:
        rows = self._router.select(index, margin, routes)
        return [run and sum(ran) < self._max_layers for run, ran in zip(rows, zip(*routes, strict=True), strict=True)]

    def terms(self, rows: int, num_layers: int) -> tuple[np.ndarray, int]:
        thresholds, most = self._router.terms(rows, num_layers)
        return thresholds, min(most, self._max_layers)


def _thresholds(routes: np.ndarray) -> np.ndarray:
    """Those that every margin, or none, is above, as long as margins are numbers."""
    return np.where(routes, np.float32(-np.inf), np.float32(np.inf))
