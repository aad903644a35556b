"""`calibrate`: the thresholds at which a bundle keeps its budget on texts of one's own.

A threshold was met on the texts of training or evaluation; longer or harder ones run more layers at it. No retraining:
what is found is an option of whoever loads the bundle, or becomes an operating point of it. All is of batches of 32,
which below fp32 is not quite what texts do that come alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.problems import groups_of
from hadskip_export.data.tables import Columns, Examples, check_labels, names_in, read_examples
from hadskip_export.exporters.amend import add_points
from hadskip_export.routing.budgets import keeps, resolve_budget
from hadskip_export.routing.points import Point
from hadskip_export.routing.routes import RouteStatistics, statistics
from hadskip_export.routing.thresholds import HardRoutes, find_threshold
from hadskip_export.runtime.bundle import FULL, Manifest
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.policies import Decisions, GatePolicy
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded, pad
from hadskip_export.support.errors import BudgetError, EngineError
from hadskip_export.support.progress import say, track
from hadskip_export.support.words import counted

BATCH = 32


@dataclass(frozen=True)
class Calibrated:
    """What the bundle does with the texts at a threshold.

    Args:
        budget: mean layers asked for; None for the bundle's default point, whatever it gives.
        threshold: in logits, of every gate; None where the default point has one for each.
        routes: their mean layers are as near to `budget` as was found.
        metric: None without labels.
    """

    budget: float | None
    threshold: float | None
    routes: RouteStatistics
    metric: float | None

    @property
    def keeps_budget(self) -> bool:
        return self.budget is None or keeps(self.budget, self.routes.mean_layers)


@dataclass(frozen=True)
class Calibration:
    """Of one engine of a bundle, on so many texts; the bundle's default point first. `written`: whether the bundle has
    the others as operating points now."""

    bundle: str
    engine: str
    texts: int
    metric: str
    rows: tuple[Calibrated, ...]
    written: bool


def calibrate(
    bundle: str | Path,
    data: str | Path,
    budgets: Sequence[float] = (),
    *,
    write: bool = False,
    engine: str | None = None,
    precision: str | None = None,
    cut: Cut | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Calibration:
    """Finds, for each budget, the threshold at which the texts of a file run so many layers on average.

    Args:
        data: a file like the texts to be served, a few thousand of them; all are run some five times.
        budgets: mean layers, below 1 a share of them; the bundle's default one if left out.
        write: add what was found to the bundle as operating points, each in the place of that of its budget; the
            default one stays the default.
        engine, precision, cut: which of the bundle's engines, see `Predictor.load`.
        label_column: for the metric; left out, a column that looks like it, if all it has are the bundle's labels.

    Raises:
        BudgetError: a budget beyond the model; with `write`, one that these gates do not come near; a bundle with a
            static route, which has nothing to set.
        BundleError: another process is adding to the bundle.
        DataError: see `read_examples`.
        EngineError: margins that are no numbers.
        HadskipError: see `Predictor.load`.
    """
    with Predictor.load(bundle, engine=engine, precision=precision, cut=cut) as predictor:
        manifest = predictor.bundle.manifest
        if not manifest.router.asks_gates:
            raise BudgetError(f"{bundle}: has a static route and no threshold to set; build a run with gates")
        wanted = [resolve_budget(budget, manifest.model.layers) for budget in budgets] or [manifest.default_budget]
        columns = Columns(text_column, pair_column, label_column)
        read = read_examples(data, columns, problem_type=predictor.problem.type, unlabelled=True)
        examples = _known(read, predictor.labels, Path(data), label_column)
        encoded = predictor.tokenizer.encode(examples.texts)
        score = _scorer(predictor, examples)
        routes = _hard_routes(predictor, encoded)
        try:
            found = [find_threshold(routes, budget) for budget in track(wanted, len(wanted), "thresholds")]
        except ValueError as error:
            raise EngineError(f"{bundle}: {predictor.engine_info.name}: {error} here; try another engine") from error

        def row(budget: float | None, threshold: float | None) -> Calibrated:
            at = {"budget": manifest.default_budget} if budget is None else {"gate_threshold": threshold}
            logits, taken = predictor.run(encoded, BATCH, **at)
            return Calibrated(budget, threshold, statistics(taken), score(logits))

        thresholds = set(manifest.default_point.thresholds)
        rows = (row(None, min(thresholds) if len(thresholds) == 1 else None), *map(row, wanted, found))
        if write:
            _check_kept(bundle, rows[1:])
            full = None if FULL not in predictor.engine_info.files else predictor.run(encoded, BATCH, router="full")[0]
            full_metric = None if full is None else score(full)
            add_points(
                Path(bundle),
                [
                    _point(one, manifest, f"{counted(len(encoded), 'text')} of {Path(data).name}", full_metric)
                    for one in rows[1:]
                ],
            )
        name = predictor.engine_info.name
    return Calibration(str(bundle), name, len(encoded), manifest.metric, rows, write)


def _scorer(predictor: Predictor, examples: Examples) -> Callable[[np.ndarray], float | None]:
    """What gives the metric of logits; None without labels."""
    measure, problem = METRICS[predictor.bundle.manifest.metric], predictor.problem
    targets, groups = problem.targets(examples.labels), groups_of(examples.texts)
    return lambda logits: None if targets is None else measure(problem, logits, targets, groups)


def _check_kept(bundle: str | Path, rows: Sequence[Calibrated]) -> None:
    """An operating point that its own texts do not keep would be a promise broken at once."""
    if missed := [row for row in rows if not row.keeps_budget]:
        nearest = ", ".join(f"{row.budget:g} (nearest: {row.routes.mean_layers:.2f})" for row in missed)
        raise BudgetError(
            f"{bundle}: its gates come nowhere near a budget of {nearest} on these texts, and nothing was written;"
            " leave it out, or train with that --budget"
        )


def _point(row: Calibrated, manifest: Manifest, data: str, full_metric: float | None) -> Point:
    assert row.budget is not None and row.threshold is not None
    thresholds = [row.threshold] * manifest.model.layers
    figures = {"metric": row.metric, "full_metric": full_metric}
    return Point.met(row.budget, thresholds, data, row.routes, **figures)


def _known(examples: Examples, labels: tuple[str, ...], file: Path, label_column: str | None) -> Examples:
    """Without labels, where what was taken for them is something else."""
    if label_column is not None:
        check_labels(examples, labels, file)
    elif not {name for label in examples.labels for name in names_in(label)} <= set(labels):
        say(f"{file}: its labels are not those of the model, which has {', '.join(labels)}; so no metric")
        return Examples(examples.texts, [])
    return examples


class _Asked(GatePolicy):
    """Keeps the margins that it decided by, float32 [b, L]."""

    def __init__(self, threshold: float, num_layers: int):
        super().__init__([threshold] * num_layers)
        self._num_layers = num_layers
        self.margins = np.zeros((0, num_layers), np.float32)

    def start(self, rows: int) -> Decisions:
        self.margins = np.zeros((rows, self._num_layers), np.float32)
        return self

    def rows(self, index: int, margins: Sequence[float]) -> list[bool]:
        self.margins[:, index] = margins
        return super().rows(index, margins)


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
            policy = _Asked(threshold, chain.num_layers)
            _, routes[part] = chain.run(batch, policy)
            margins[part] = policy.margins
        return routes, margins

    return HardRoutes(evaluate, len(inputs))
