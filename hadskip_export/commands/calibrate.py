"""`calibrate`: the thresholds at which a bundle keeps its budget on texts of one's own.

A threshold was met on the texts of training or evaluation; longer or harder ones run more layers at it. No retraining,
and nothing in the bundle changes: the threshold is an option of whoever loads it. All is of batches of 32, which below
fp32 is not quite what texts do that come alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.tables import Columns, Examples, check_labels, read_examples
from hadskip_export.routing.budgets import resolve_budget
from hadskip_export.routing.routes import RouteStatistics, statistics
from hadskip_export.routing.thresholds import HardRoutes, find_threshold
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.routers import GateRouter
from hadskip_export.runtime.tokenization import Encoded, pad
from hadskip_export.support.errors import BudgetError, EngineError
from hadskip_export.support.progress import say, track

BATCH = 32
OFF = 0.03  # share of a budget; a row farther from it says so


@dataclass(frozen=True)
class Row:
    """What the bundle does with the texts at a threshold.

    Args:
        budget: mean layers asked for; None for the bundle's own threshold, whatever it gives.
        threshold: in logits.
        routes: their mean layers are as near to `budget` as was found.
        metric: None without labels.
    """

    budget: float | None
    threshold: float
    routes: RouteStatistics
    metric: float | None

    def line(self) -> str:
        name = "as built" if self.budget is None else f"{self.budget:g}"
        metric = "" if self.metric is None else f"{self.metric:>11.4f}"
        share, met = self.routes.commonest[0][1], self.routes.mean_layers
        off = self.budget is not None and abs(met - self.budget) > OFF * self.budget
        note = "  these gates come no nearer" if off else ""
        return f"{name:>8} {self.threshold:>+10.4f} {met:>7.2f} {share:>10.1%}{metric}{note}"


@dataclass(frozen=True)
class Calibration:
    """Of one engine of a bundle, on so many texts; the bundle's own threshold first."""

    bundle: str
    engine: str
    texts: int
    metric: str
    rows: tuple[Row, ...]

    def lines(self) -> list[str]:
        """As a person reads it."""
        metric, last = "" if self.rows[0].metric is None else f"{self.metric:>11}", self.rows[-1]
        threshold = f"{last.threshold:.6g}"
        return [
            f"{self.texts} texts on {self.engine}",
            f"{'budget':>8} {'threshold':>10} {'layers':>7} {'commonest':>10}{metric}",
            *(row.line() for row in self.rows),
            f"for {last.budget:g}: Predictor.load({self.bundle!r}, engine={self.engine!r}, gate_threshold={threshold})",
            f"or hadskip-export predict {self.bundle} --engine {self.engine} --gate-threshold {threshold}",
        ]


def calibrate(
    bundle: str | Path,
    data: str | Path,
    budgets: Sequence[float] = (),
    *,
    engine: str | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Calibration:
    """Finds, for each budget, the threshold at which the texts of a file run so many layers on average.

    Args:
        data: a CSV, TSV or JSONL file like the texts to be served, a few thousand of them; all are run some five times.
        budgets: mean layers, below 1 a share of them; the bundle's own if left out.
        label_column: for the metric; left out, a column that looks like it, if all it has are the bundle's labels.

    Raises:
        BudgetError: a budget beyond the model, or a bundle with a static route, which has nothing to set.
        DataError: see `read_examples`.
        EngineError: margins that are no numbers.
        HadskipError: see `Predictor.load`.
    """
    with Predictor.load(bundle, engine=engine) as predictor:
        manifest = predictor.bundle.manifest
        if manifest.router.kind == "static":
            raise BudgetError(f"{bundle}: has a static route and no threshold to set; build a run with gates")
        wanted = [resolve_budget(budget, manifest.model.layers) for budget in budgets] or [manifest.router.budget]
        columns = Columns(text_column, pair_column, label_column)
        examples = _known(read_examples(data, columns, unlabelled=True), predictor.labels, Path(data), label_column)
        encoded = predictor.tokenizer.encode(examples.texts)
        expected = np.array([predictor.labels.index(label) for label in examples.labels])

        def row(budget: float | None, threshold: float) -> Row:
            logits, routes = predictor.run(encoded, BATCH, gate_threshold=threshold)
            metric = METRICS[manifest.metric](logits.argmax(-1), expected) if len(expected) else None
            return Row(budget, threshold, statistics(routes), metric)

        routes = _hard_routes(predictor, encoded)
        try:
            found = [find_threshold(routes, budget) for budget in track(wanted, len(wanted), "thresholds")]
        except ValueError as error:
            raise EngineError(f"{bundle}: {predictor.engine_info.name}: {error} here; try another engine") from error
        rows = (row(None, manifest.router.threshold), *map(row, wanted, found))
        return Calibration(str(bundle), predictor.engine_info.name, len(encoded), manifest.metric, rows)


def _known(examples: Examples, labels: tuple[str, ...], file: Path, label_column: str | None) -> Examples:
    """Without labels, where what was taken for them is something else."""
    if label_column is not None:
        check_labels(examples, labels, file)
    elif not set(examples.labels) <= set(labels):
        say(f"{file}: its labels are not those of the model, which has {', '.join(labels)}; so no metric")
        return Examples(examples.texts, [])
    return examples


class _Asked(GateRouter):
    """Keeps the margins that it decided by, float32 [b, L]."""

    def __init__(self, threshold: float, rows: int, num_layers: int):
        super().__init__(threshold)
        self.margins = np.zeros((rows, num_layers), np.float32)

    def select(self, index: int, margin: Sequence[float], routes: Sequence[Sequence[bool]]) -> list[bool]:
        self.margins[:, index] = margin
        return super().select(index, margin, routes)


def _hard_routes(predictor: Predictor, encoded: Sequence[Encoded]) -> HardRoutes:
    """What the chain's gates do with inputs. Where graphs answer they may differ by what `parity` allows."""
    chain = predictor.load_chain()
    inputs = sorted(encoded, key=len)  # those of similar length share a batch

    def evaluate(rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        routes = np.zeros((len(rows), chain.num_layers), bool)
        margins = np.zeros(routes.shape, np.float32)
        starts = range(0, len(rows), BATCH)
        # All of them at first; then ever fewer.
        for start in track(starts, len(starts), "texts, in batches") if len(rows) == len(inputs) else starts:
            part = slice(start, start + BATCH)
            batch = pad([inputs[row] for row in rows[part].tolist()])
            router = _Asked(threshold, len(batch), chain.num_layers)
            _, routes[part] = chain.run(batch, router)
            margins[part] = router.margins
        return routes, margins

    return HardRoutes(evaluate, len(inputs))
