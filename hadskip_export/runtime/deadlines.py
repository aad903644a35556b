"""Which operating point answers in time, by what calls take on this machine."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from hadskip_export.routing.points import Point

TOKENS = (16, 64, 128)  # of the inputs that are timed, and the most that the model takes
MOST_TOKENS = 512  # beyond, a call is taken to be longer as its tokens are
REPEATS, QUANTILE = 7, 0.8  # of a call: seldom longer, and one that was disturbed does not count
IN_TIME = 0.95  # of the inputs that a point was met on

# Runs an input of so many tokens with all of its layers, or as few as can be.
Run = Callable[[int, bool], object]


class Pace:
    """Seconds of a call of one input: what it takes with the fewest layers, and what each more adds, by its tokens.

    Args:
        fewest: layers that an input runs at least.
    """

    def __init__(self, run: Run, num_layers: int, max_length: int, fewest: int = 0):
        """Times some sixty calls, with few layers and with all in turns."""
        longest = min(max_length, MOST_TOKENS)
        self._fewest, self._more = fewest, max(1, num_layers - fewest)
        self._tokens = [*(tokens for tokens in TOKENS if tokens < longest), longest]
        timed = [_timed(run, tokens) for tokens in self._tokens]
        self._few, self._all = [few for few, _ in timed], [max(both) for both in timed]

    def seconds(self, lengths: Sequence[int], layers: float) -> float:
        """Of inputs of so many tokens that run so many layers each, as if they came one after the other."""
        longer = np.maximum(1.0, np.array(lengths, float) / self._tokens[-1])
        few, every = ((np.interp(lengths, self._tokens, known) * longer).sum() for known in (self._few, self._all))
        return float(few + (every - few) * (layers - self._fewest) / self._more)

    def choose(self, points: Sequence[Point], lengths: Sequence[int], seconds: float) -> Point:
        """The largest point at which 95 of 100 inputs like these are answered in so many seconds; the smallest where
        none is.

        Args:
            points: by ascending budget.
        """
        fit = [point for point in points if self.seconds(lengths, most_layers(point)) <= seconds]
        return fit[-1] if fit else points[0]


class Deadlines:
    """Operating points by the time that is left. The pace is measured when it is first needed, by one call; others wait
    for it.

    Args:
        points: by ascending budget.
    """

    def __init__(self, points: Sequence[Point]):
        self._points = points
        self._lock = threading.Lock()
        self._pace: Pace | None = None

    def thresholds(self, lengths: Sequence[int], milliseconds: float, measure: Callable[[], Pace]) -> Sequence[float]:
        """Of the point that `Pace.choose` has, [L]. What measuring takes is taken of the time."""
        started = time.perf_counter()
        if self._pace is None:
            with self._lock:
                if self._pace is None:
                    self._pace = measure()
        left = milliseconds / 1e3 - (time.perf_counter() - started)
        return self._pace.choose(self._points, lengths, left).thresholds


def most_layers(point: Point) -> float:
    """What 95 of 100 inputs run at most there, by what was seen; what was not counts as long."""
    seen = 0.0
    for layers, share in sorted(point.shares.items()):
        seen += share
        if seen >= IN_TIME:
            return layers
    return len(point.thresholds)


def _timed(run: Run, tokens: int) -> tuple[float, float]:
    """With the fewest layers, and with all."""
    taken = np.zeros((1 + REPEATS, 2))
    for row in taken:
        for every in (False, True):
            started = time.perf_counter()
            run(tokens, every)
            row[int(every)] = time.perf_counter() - started
    none, every_layer = np.quantile(taken[1:], QUANTILE, axis=0)  # the first warms up
    return float(none), float(every_layer)
