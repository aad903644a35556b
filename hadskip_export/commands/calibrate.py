"""`calibrate`: the operating point at which a bundle keeps a budget, a time or a loss, on texts of one's own.

A threshold was met on the texts of training or evaluation; longer or harder ones run more layers at it. No retraining:
what is found is an option of whoever loads the bundle, or becomes an operating point of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hadskip_export.data.columns import Columns
from hadskip_export.data.examples import Examples, check_labels, names_in, read_examples
from hadskip_export.data.metrics import check_tells
from hadskip_export.data.problems import groups_of
from hadskip_export.exporters.amend import add_points
from hadskip_export.routing.budgets import resolve_budget
from hadskip_export.routing.points import Point
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import BudgetError, DataError
from hadskip_export.support.progress import say, track
from hadskip_export.support.values import several
from hadskip_export.support.words import counted, printable
from hadskip_export.tuning.search import Calibrated, Search


@dataclass(frozen=True)
class Calibration:
    """Of one engine of a bundle, on so many texts.

    Args:
        metric: its name.
        loss_of: what a loss is counted in; `agreement`, with full BERT, where the texts have no labels.
        rows: the bundle's default point, then what was tried, in that order.
        chosen: what was asked for: the last budget, or the one that keeps the time or the loss.
        written: whether the bundle has it, or all of the budgets, as operating points now.
        default: whether it is the default one now.
    """

    bundle: str
    engine: str
    texts: int
    metric: str
    loss_of: str | None
    rows: tuple[Calibrated, ...]
    chosen: Calibrated
    written: bool
    default: bool


def calibrate(
    bundle: str | Path,
    data: str | Path,
    budgets: Sequence[float] = (),
    *,
    max_loss: float | None = None,
    p50: float | None = None,
    write: bool = False,
    engine: str | None = None,
    precision: str | None = None,
    cut: Cut | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Calibration:
    """Finds the threshold at which the texts of a file run so many layers on average, lose so little or take so long.

    Args:
        data: a file like the texts to be served, a few thousand of them; all are run some five times.
        budgets: mean layers, below 1 a share of them; the bundle's default one if left out. Or one of:
        max_loss: the most of the metric that may be lost against full BERT, with 95 % confidence; the smallest budget
            that does not lose more. Without labels, the share of texts with another answer; of scores, 1 less their
            correlation with full BERT's. See `tuning.loss.Judge` for how sure that is.
        p50: milliseconds; the largest budget at which half of the calls of one text take no longer on this machine.
        write: add what was found to the bundle as operating points, each in the place of that of its budget. The
            default one stays the default, unless it was looked for by `max_loss` or `p50`, which becomes it.
        engine, precision, cut: which of the bundle's engines, see `Predictor.load`.
        label_column: for the metric; left out, a column that looks like it, if all it has are the bundle's labels.

    Raises:
        BudgetError: a budget beyond the model; with `write`, one that these gates do not come near; a bundle with a
            static route, which has nothing to set; none of its budgets is what `max_loss` or `p50` asks for.
        BundleError: another process is adding to the bundle; no full model in it, and a `max_loss`.
        DataError: see `read_examples`; texts too few to show `max_loss`; more than one thing to look for.
        EngineError: margins that are no numbers.
        HadskipError: see `Predictor.load`.
    """
    budgets = several("budgets", budgets)
    _check_one_goal(budgets, max_loss, p50)
    with Predictor.load(bundle, engine=engine, precision=precision, cut=cut) as predictor:
        manifest, name = predictor.bundle.manifest, predictor.engine_info.name
        if not manifest.router.decides:
            raise BudgetError(f"{bundle}: has a static route and no threshold to set; build a run with gates")
        wanted = [resolve_budget(budget, manifest.model.layers) for budget in budgets] or [manifest.default_budget]
        columns = Columns(text_column, pair_column, label_column)
        read = read_examples(data, columns, problem_type=predictor.problem.type, unlabelled=True)
        examples = _telling(_known(read, predictor.labels, Path(data), label_column), predictor, label_column)
        search, loss_of = Search(predictor, examples), None
        if max_loss is not None:
            judge = search.judge()
            judge.check_enough(max_loss)
            loss_of, tried = judge.measure, search.within(max_loss, judge)
            fit = [row for row in tried if row.loses_at_most(max_loss)]
        elif p50 is not None:
            tried = search.in_time(p50)
            fit = [row for row in tried if row.takes_at_most(p50)]
        else:
            tried = fit = [search.at(budget) for budget in track(wanted, len(wanted), "thresholds")]
        if not fit:
            raise BudgetError(f"{bundle}: {name}: {_why_none(tried, max_loss)}")
        rows, looked_for = (search.at(None), *tried), max_loss is not None or p50 is not None
        if write:
            kept = fit[-1:] if looked_for else tried
            _check_kept(bundle, kept)
            texts = f"{counted(len(examples), 'text')} of {printable(Path(data).name)}"
            full_metric = search.full_metric()
            if looked_for and (others := [info.name for info in manifest.engines if info.name != name]):
                say(f"{bundle}: the default of {', '.join(others)} too, though it was looked for with {name}")
            points = [_point(one, manifest, texts, full_metric) for one in kept]
            add_points(Path(bundle), points, fit[-1].budget if looked_for else None)
    return Calibration(
        bundle=str(bundle), engine=name, texts=len(examples), metric=manifest.metric, loss_of=loss_of, rows=rows,
        chosen=fit[-1], written=write, default=write and looked_for,
    )  # fmt: skip


def _check_one_goal(budgets: Sequence[float], max_loss: float | None, p50: float | None) -> None:
    """
    Raises:
        DataError: several, or a time that is none.
    """
    given = {"--budget": budgets or None, "--max-loss": max_loss, "--p50": p50}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise DataError(f"{' and '.join(names)}: each says which budget to look for; leave one of them out")
    if p50 is not None and not p50 > 0:
        raise DataError(f"--p50 {p50:g}: expected milliseconds above 0")


def _why_none(tried: Sequence[Calibrated], max_loss: float | None) -> str:
    if not tried:
        return "no threshold gives any budget on these texts; give more of them"
    row = tried[0] if max_loss is not None else tried[-1]
    if max_loss is not None:
        assert row.loss is not None
        return (
            f"with {row.budget:g} layers it may lose up to {row.loss.most:.4f}, and --max-loss is {max_loss:g}; allow"
            " more, give more texts (of few nobody can be sure), or serve full BERT (--router full)"
        )
    return f"with {row.budget:g} layers a call takes {row.p50_ms:.2f} ms; allow more time, or try another engine"


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


def _telling(examples: Examples, predictor: Predictor, label_column: str | None) -> Examples:
    """Without labels, where the metric says nothing of them."""
    try:
        targets, metric = predictor.problem.targets(examples.labels), predictor.bundle.manifest.metric
        check_tells(metric, targets, groups_of(examples.texts), "the labelled texts")
    except DataError as error:
        if label_column is not None:
            raise
        say(f"{error}; so no metric")
        return replace(examples, labels=[])
    return examples


def _known(examples: Examples, labels: tuple[str, ...], file: Path, label_column: str | None) -> Examples:
    """Without labels, where what was taken for them is something else."""
    if label_column is not None:
        check_labels(examples, labels, file)
    elif not {name for label in examples.labels for name in names_in(label)} <= set(labels):
        say(f"{file}: its labels are not those of the model, which has {', '.join(labels)}; so no metric")
        return Examples(examples.texts, [])
    return examples
