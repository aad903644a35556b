"""What training and comparing came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hadskip_export.data.metrics import AGREEMENT
from hadskip_export.support.words import counted

if TYPE_CHECKING:
    from hadskip_export.commands.compare import Comparison
    from hadskip_export.comparison.table import Interval
    from hadskip_export.data.runs import BudgetFigures, Summary

EVALUATION = "the evaluation data"  # of runs that do not say its name


def training(summary: Summary) -> list[str]:
    """A run's summary.json: a row per budget. Of texts without labels, how often the student says what its teacher
    says, and how far its probabilities are from the teacher's, in place of a metric and of the share of it."""
    metric, teacher = summary["metric"], summary["teacher"]
    unlabelled = metric == AGREEMENT
    measured = "agreement with the teacher" if unlabelled else metric
    columns = [metric, "divergence" if unlabelled else "retained"]
    told = "" if unlabelled else f"; teacher {teacher['metric']:.4f}"
    if "mismatched_metric" in teacher:
        told += f" (mismatched {teacher['mismatched_metric']:.4f})"
        columns.insert(1, "mismatched")
    headings = ["budget", "layers", *columns, "routes", "top share", "top alone", "static", "skill"]
    rows = [_trained(row, unlabelled) for row in summary["budgets"]]
    widths = [max(7, *map(len, column)) for column in zip(headings, *rows, strict=True)]
    return [
        f"{summary['task']}: {measured} on {summary.get('evaluated_on', EVALUATION)} by budget{told} with all"
        f" {counted(summary['layers'], 'layer')}",
        *(" ".join(map(str.rjust, cells, widths)) for cells in (headings, *rows)),
    ]


def _trained(row: BudgetFigures, unlabelled: bool) -> list[str]:
    kept = "" if row["retained"] is None else f"{row['retained']:.1%}"
    return [
        f"{row['budget']:g}",
        f"{row['mean_layers']:.2f}",
        f"{row['metric']:.4f}",
        *([f"{row['mismatched_metric']:.4f}"] if "mismatched_metric" in row else []),
        f"{row['divergence']:.4f}" if unlabelled else kept,
        str(row["routes"]),
        f"{row['top_route_share']:.1%}",
        f"{row['top_route_metric']:.4f}",
        f"{row['static_metric']:.4f}",
        "" if (skill := row.get("skill")) is None else f"{skill:.0%}",
    ]


def comparison(found: Comparison) -> list[str]:
    """Systems by budget: what they run, take and keep of the teacher, and how far the first is above each."""
    first, budget = found.lines[0].system, None
    told = [f"{found.task}: full BERT, {counted(found.layers, 'layer')}, {found.metric} {found.teacher:.4f}"]
    for line in found.lines:
        if line.budget != budget:
            budget = line.budget
            told += ["", f"{budget:g} of {counted(found.layers, 'layer')}"]
            told.append(
                f"  {'':<26} {'layers':>6} {found.metric[:8]:>8} {'exact':>6} {'kept':>6} {'KL':>6}"
                f" {'p50 ms':>7} {'faster':>6}  {first} above, at as many layers"
            )
        told.append(
            f"  {line.system:<26} {line.mean_layers:>6.2f} {line.metric:>8.4f} {_number(line.exact, 4):>6}"
            f" {_share(line.retained):>6} {line.divergence:>6.3f} {_number(line.p50_ms, 2):>7}"
            f" {_number(line.speedup, 2):>6}  {_interval(line.above)}"
        )
    timed = "calls were not timed" if found.engine is None else f"one text a call, {found.engine}"
    met = f"budgets met on the {found.threshold_on} texts"
    return [*told, "", f"means over seeds, intervals of 95 %; {met}; {timed}"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f}), {counted(found.pairs, 'seed')}"
