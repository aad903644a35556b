"""Results of several seeds -> one table: each system at each budget, and how far ours is above it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hadskip_export.comparison.figures import Figures, Result


@dataclass(frozen=True)
class Interval:
    """A mean over pairs of one seed and its 95 % interval; without one where there is one pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Line:
    """A system at a budget, means over seeds.

    Args:
        metric, retained, divergence, mean_layers: see `Figures`.
        exact: the metric at exactly as many layers as the budget has, of the seeds that come to it; None where none
            does.
        p50_ms, speedup: None where nobody timed it.
        above, less_divergence: at exactly as many layers, what the first system has more of the metric, and less of
            the divergence as a share of this one's, in pairs of one seed; None of the first system, and where no seed
            has both.
    """

    system: str
    budget: float
    seeds: int
    mean_layers: float
    metric: float
    exact: float | None
    retained: float | None
    divergence: float
    p50_ms: float | None
    speedup: float | None
    above: Interval | None
    less_divergence: Interval | None


def lines(results: Sequence[Result], budgets: Sequence[float]) -> tuple[Line, ...]:
    """By budget, systems as they come in the results; the first one is ours."""
    systems = list(dict.fromkeys(result.system for result in results))
    by_seed: dict[tuple[str, float], dict[int, Figures]] = {}
    for result in results:
        for figures in result.figures:
            by_seed.setdefault((result.system, figures.budget), {})[result.seed] = figures
    return tuple(
        _line(system, budget, by_seed[system, budget], by_seed.get((systems[0], budget), {}), system == systems[0])
        for budget in budgets
        for system in systems
        if (system, budget) in by_seed
    )


def _line(system: str, budget: float, found: dict[int, Figures], ours: dict[int, Figures], is_ours: bool) -> Line:
    timed = [figures.latency for figures in found.values() if figures.latency is not None]
    retained = [figures.retained for figures in found.values() if figures.retained is not None]
    exact = [figures.metric_at for figures in found.values() if figures.metric_at is not None]
    pairs = [] if is_ours else [(ours[seed], found[seed]) for seed in sorted(ours.keys() & found.keys())]
    return Line(
        system=system,
        budget=budget,
        seeds=len(found),
        mean_layers=_mean([figures.mean_layers for figures in found.values()]),
        metric=_mean([figures.metric for figures in found.values()]),
        exact=_mean(exact) if exact else None,
        retained=_mean(retained) if retained else None,
        divergence=_mean([figures.divergence for figures in found.values()]),
        p50_ms=_mean([latency.p50_ms for latency in timed]) if timed else None,
        speedup=_mean([latency.speedup for latency in timed]) if timed else None,
        above=_interval([_above(*pair) for pair in pairs]),
        less_divergence=_interval([_less_divergence(*pair) for pair in pairs]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _above(ours: Figures, theirs: Figures) -> float | None:
    if ours.metric_at is None or theirs.metric_at is None:
        return None
    return ours.metric_at - theirs.metric_at


def _less_divergence(ours: Figures, theirs: Figures) -> float | None:
    if ours.divergence_at is None or not theirs.divergence_at:
        return None
    return 1 - ours.divergence_at / theirs.divergence_at


def _interval(differences: Sequence[float | None]) -> Interval | None:
    values = np.array([value for value in differences if value is not None])
    if not len(values):
        return None
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, len(values))
