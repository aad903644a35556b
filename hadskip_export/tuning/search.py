"""Which budget to serve at: one asked for, the smallest that loses little enough, or the largest that is in time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hadskip_export.data.examples import Examples
from hadskip_export.data.metrics import METRICS, check_tells
from hadskip_export.data.problems import groups_of
from hadskip_export.routing.budgets import keeps
from hadskip_export.routing.routes import RouteStatistics, statistics
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.progress import say
from hadskip_export.tuning.gauge import Gauge
from hadskip_export.tuning.loss import Judge, Loss

STEPS = 24  # from all layers down to none, about


@dataclass(frozen=True)
class Calibrated:
    """What a bundle does with the texts at a threshold.

    Args:
        budget: mean layers asked for; None for the bundle's default point, whatever it gives.
        threshold: in logits, of every gate; None where the default point has one for each.
        routes: their mean layers are as near to `budget` as was found.
        metric: None without labels.
        loss: against full BERT in fp32; None where nobody asked.
        p50_ms: milliseconds of a call of one text; None where nobody asked.
    """

    budget: float | None
    threshold: float | None
    routes: RouteStatistics
    metric: float | None
    loss: Loss | None = None
    p50_ms: float | None = None

    @property
    def keeps_budget(self) -> bool:
        return self.budget is None or keeps(self.budget, self.routes.mean_layers)

    def loses_at_most(self, most_lost: float) -> bool:
        return self.loss is not None and self.loss.most <= most_lost

    def takes_at_most(self, most_ms: float) -> bool:
        return self.p50_ms is not None and self.p50_ms <= most_ms


class Search:
    """Of one engine on some texts.

    Args:
        examples: whose labels, if there are any, are the bundle's.

    Raises:
        DataError: see `check_tells`.
    """

    def __init__(self, predictor: Predictor, examples: Examples):
        self._predictor, self._gauge = predictor, Gauge(predictor, examples.texts)
        self._targets, self._groups = predictor.problem.targets(examples.labels), groups_of(examples.texts)
        check_tells(predictor.bundle.manifest.metric, self._targets, self._groups, "the labelled texts")

    def judge(self) -> Judge:
        """Of losses against full BERT; see `Gauge.full_logits`."""
        metric = self._predictor.bundle.manifest.metric
        return Judge(self._predictor.problem, metric, self._gauge.full_logits(), self._targets, self._groups)

    def full_logits(self) -> np.ndarray:
        """Full BERT's in this engine, float32 [n, labels]."""
        return self._gauge.run(router="full")[0]

    def logits_at(self, row: Calibrated) -> np.ndarray:
        """float32 [n, labels]"""
        return self._gauge.run(gate_threshold=row.threshold)[0]

    def at(self, budget: float | None) -> Calibrated:
        """At the budget, or as the bundle is."""
        return self._tried(budget)[0]

    def full_metric(self) -> float | None:
        """That of the engine with all layers of full BERT; None without labels, or where the bundle has none."""
        if self._targets is None or not self._predictor.has_full:
            return None
        return self.score(self.full_logits())

    def within(self, most_lost: float, judge: Judge) -> list[Calibrated]:
        """Budgets from all layers down, each of which loses at most so much with 95 % confidence, and after them the
        first that may lose more, if there is one. In one fixed order until one fails: so the last that does not holds
        with the same confidence, however many were tried (fixed sequence testing; Angelopoulos et al. 2021,
        arXiv:2110.01052)."""
        found: list[Calibrated] = []
        for budget in self._budgets():
            row, logits = self._tried(budget)
            if not row.keeps_budget:  # no threshold gives it; one below may be given
                continue
            found.append(replace(row, loss=judge.loss(logits)))
            if not found[-1].loses_at_most(most_lost):
                break
        return found

    def in_time(self, most_ms: float) -> list[Calibrated]:
        """Budgets from all layers down that take longer, and after them the first that does not, if there is one."""
        found = []
        for budget in self._budgets():
            row = self.at(budget)
            if not row.keeps_budget:
                continue
            assert row.threshold is not None
            found.append(replace(row, p50_ms=self._gauge.p50_ms(gate_threshold=row.threshold)))
            if found[-1].takes_at_most(most_ms):
                break
        return found

    def _budgets(self) -> Iterator[float]:
        """From all layers down in steps of a power of 2, said one by one."""
        layers = self._predictor.bundle.manifest.model.layers
        step = 2.0 ** round(math.log2(layers / STEPS))
        for index in range(int(layers / step)):
            budget = layers - index * step
            say(f"trying {budget:g} of {layers} layers")
            yield budget

    def _tried(self, budget: float | None) -> tuple[Calibrated, np.ndarray]:
        """And the logits, float32 [n, labels]."""
        if budget is None:
            manifest = self._predictor.bundle.manifest
            thresholds = set(manifest.default_point.thresholds)
            threshold = min(thresholds) if len(thresholds) == 1 else None
            logits, routes = self._gauge.run(budget=manifest.default_budget)
        else:
            threshold = self._gauge.threshold(budget)
            logits, routes = self._gauge.run(gate_threshold=threshold)
        return Calibrated(budget, threshold, statistics(routes), self.score(logits)), logits

    def score(self, logits: np.ndarray) -> float | None:
        """The metric; None without labels."""
        if self._targets is None:
            return None
        metric = METRICS[self._predictor.bundle.manifest.metric]
        return metric(self._predictor.problem, logits, self._targets, self._groups)
