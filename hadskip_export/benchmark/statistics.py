"""From raw samples to figures: percentiles, ratios and how far to trust them."""

from dataclasses import dataclass

import numpy as np

BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % interval."""

    value: float
    low: float
    high: float


def speedup(baseline: np.ndarray, candidate: np.ndarray, seed: int = 0) -> Ratio:
    """How many times faster the candidate answers the same calls: total time over total time.

    Each call counts with the median of its turns, so that a disturbed turn does not. The interval is a bootstrap over
    calls, times how far the ratio drifted from turn to turn: what slows one of the two for a while slows all calls of
    a turn, so calls alone would promise too much.

    Args:
        baseline, candidate: seconds, float [calls, turns], row by row the same inputs, column by column the same time.
    """
    random = np.random.default_rng(seed)
    calls, turns = baseline.shape
    slow, fast = np.median(baseline, axis=1), np.median(candidate, axis=1)
    drift = np.median(baseline / slow[:, None], axis=0) / np.median(candidate / fast[:, None], axis=0)  # [turns]
    drawn_calls = random.integers(0, calls, (BOOTSTRAP_SAMPLES, calls))
    drawn_turns = random.integers(0, turns, (BOOTSTRAP_SAMPLES, turns))
    ratios = slow[drawn_calls].sum(axis=1) / fast[drawn_calls].sum(axis=1) * drift[drawn_turns].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(slow.sum() / fast.sum())
    return Ratio(value, min(value, float(low)), max(value, float(high)))  # of two calls it may lie outside


def percentiles(seconds: np.ndarray) -> tuple[float, float, float]:
    """p50, p90 and p99 of all samples, in milliseconds."""
    p50, p90, p99 = np.quantile(seconds, [0.5, 0.9, 0.99]) * 1e3
    return float(p50), float(p90), float(p99)


@dataclass(frozen=True)
class PieceTimes:
    """Seconds of each piece alone. `layer` is None where the only layer is the last one."""

    embeddings: float
    layer: float | None
    last_layer: float
    head: float


def ideal_speedup(pieces: PieceTimes, *, layers: int, layers_run: float, last_run: float) -> float | None:
    """The speedup if gates, routing and copies cost nothing: `(e + L l + h) / (e + k l + h)`, where the last layer,
    which only the first token leaves, counts with what it costs. None where nobody knows what the others cost.

    Args:
        layers_run: mean layers that run, of all inputs, the last one included.
        last_run: the share of inputs that run the last one.
    """
    if pieces.layer is None:
        return None
    outside, saved = pieces.embeddings + pieces.head, pieces.layer - pieces.last_layer
    return (outside + layers * pieces.layer - saved) / (outside + layers_run * pieces.layer - last_run * saved)
