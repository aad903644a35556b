"""Families of routes: which sets of layers a body is taught to run, and draws from them.

A family in which every route runs the last layer works far better than plain prefixes: that layer then always prepares
what the head reads (docs/method.md has the figures).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hadskip_export.routing.routes import Route

SIZES_OF_A_BATCH = 4


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
    """Draws the routes that a batch runs: one each of at most `SIZES_OF_A_BATCH` sizes, the smallest and the largest
    of which are always among them (the sandwich rule of Yu and Huang 2019, arXiv:1903.05134)."""

    def __init__(self, family: Sequence[Route], seed: int):
        self._by_size = [list(alike) for _, alike in itertools.groupby(sorted(family, key=len), key=len)]
        self._seed = seed

    def __call__(self, number: int) -> list[Route]:
        """Of the batch of this number, the shortest first."""
        random = np.random.default_rng([self._seed, number])
        first, *between = self._by_size
        last = [between.pop()] if between else []
        drawn = random.choice(len(between), min(len(between), SIZES_OF_A_BATCH - 2), replace=False)
        sizes = [first, *(between[index] for index in sorted(drawn)), *last]
        return [alike[random.integers(len(alike))] for alike in sizes]
