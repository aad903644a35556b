"""What a set of routes looks like: bool [inputs, layers], true where the layer ran."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Route = tuple[int, ...]  # the layers that run, numbered from 1
FIXED_MARGIN = 20.0  # logits, where every input takes the same route: far from any threshold


def as_route(row: Iterable[bool]) -> Route:
    """bool [L] -> layers that run, from 1."""
    return tuple(layer for layer, ran in enumerate(row, start=1) if ran)


def as_row(route: Route, num_layers: int) -> np.ndarray:
    """Layers that run, from 1 -> bool [L]."""
    row = np.zeros(num_layers, bool)
    row[[layer - 1 for layer in route]] = True
    return row


def is_route(found: object, num_layers: int) -> bool:
    """Whether what a file says is a list of layers of the model: from 1, at least one, ascending."""
    return (
        isinstance(found, list | tuple)
        and bool(found)
        and all(type(layer) is int and 1 <= layer <= num_layers for layer in found)  # True is an int to isinstance
        and list(found) == sorted(set(found))
    )


@dataclass(frozen=True)
class RouteStatistics:
    """Figures of a set of routes; shares and histogram are fractions of the inputs."""

    mean_layers: float
    standard_error: float  # of mean_layers
    distinct: int
    entropy_bits: float
    commonest: list[tuple[Route, float]]  # (route, share), the commonest first, at most ten
    histogram: list[float]  # share of inputs that run 0, 1, ..., L layers
    usage: list[float]  # share of inputs that run layer 1, ..., L


def statistics(routes: np.ndarray) -> RouteStatistics:
    """bool [n, L], n > 0 -> `RouteStatistics`."""
    n, num_layers = routes.shape
    counts = Counter(map(as_route, routes))
    shares = np.array(list(counts.values())) / n
    layers = routes.sum(axis=1)
    return RouteStatistics(
        mean_layers=float(layers.mean()),
        standard_error=float(layers.std() / np.sqrt(n)),
        distinct=len(counts),
        entropy_bits=abs(float(-(shares * np.log2(shares)).sum())),
        commonest=[(route, count / n) for route, count in counts.most_common(10)],
        histogram=(np.bincount(layers, minlength=num_layers + 1) / n).tolist(),
        usage=routes.mean(axis=0).tolist(),
    )
