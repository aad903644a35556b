"""Families of routes: which sets of layers a body is taught to run, and draws from them.

A family in which every route runs the last layer works far better than plain prefixes: that layer then always prepares
what the head reads (docs/method.md has the figures).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hadskip_export.routing.routes import Route, as_row


def sizes_around(budget: float, spread: int, num_layers: int) -> list[int]:
    """Route sizes, in layers, that a body is taught for a budget: those within `spread` of it, at least 1, and always
    those on either side of a fraction."""
    below, above = math.floor(budget), math.ceil(budget)
    return list(range(max(1, min(below, above - spread)), min(num_layers, max(above, below + spread)) + 1))


def nested(sizes: Sequence[int], num_layers: int) -> list[Route]:
    """For each size k the layers 1..k-1 and the last one."""
    return [(*range(1, size), num_layers) for size in sizes]


def prefixes(sizes: Sequence[int], num_layers: int) -> list[Route]:
    """For each size k the layers 1..k."""
    return [tuple(range(1, size + 1)) for size in sizes]


def every_route(sizes: Sequence[int], num_layers: int) -> list[Route]:
    """All sets of layers of these sizes."""
    layers = range(1, num_layers + 1)
    return [route for size in sizes for route in itertools.combinations(layers, size)]


FAMILIES = {"nested": nested, "prefix": prefixes, "all": every_route}


def count_routes(family: str, sizes: Sequence[int], num_layers: int) -> int:
    """How many routes a family has, without making them."""
    return sum(math.comb(num_layers, size) for size in sizes) if family == "all" else len(sizes)


class Draw:
    """Draws a route for each row of a batch: first its size, evenly, then one of the family's routes of that size."""

    def __init__(self, family: Sequence[Route], num_layers: int, seed: int):
        by_size = itertools.groupby(sorted(family, key=len), key=len)
        self._rows = [np.stack([as_row(route, num_layers) for route in routes]) for _, routes in by_size]
        self._seed = seed

    def __call__(self, rows: np.ndarray, number: int) -> np.ndarray:
        """bool [b, L], of the batch of this number; which rows they are, int [b], plays no part."""
        random = np.random.default_rng([self._seed, number])
        sizes = random.integers(len(self._rows), size=len(rows))
        return np.stack([alike[random.integers(len(alike))] for alike in (self._rows[size] for size in sizes)])
