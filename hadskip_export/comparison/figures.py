"""What an entrant came to at each budget, as it is kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hadskip_export.data.runs import BudgetFigures, Summary
from hadskip_export.support.errors import BundleError, first_line
from hadskip_export.support.files import replaced


def system_of(name: str, published: bool) -> str:
    """What a table calls an entrant."""
    return f"{name}, as published" if published else name


@dataclass(frozen=True)
class Latency:
    """Of calls of one text each, text in and answer out, in turns with full BERT on the same engine.

    Args:
        p50_ms, full_p50_ms: milliseconds that half of the calls take no longer than, and full BERT's.
        speedup, low, high: full BERT's time over this one's, and its 95 % interval.
    """

    engine: str
    p50_ms: float
    full_p50_ms: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """On the evaluation data, at the threshold that meets a budget.

    Args:
        budget: layers asked for; `mean_layers`: those that ran.
        retained: share of the teacher's metric; None where that is not above 0.
        divergence: from the teacher's predictions, in nats.
        metric_at, divergence_at: at exactly the budget, see `trainers.summary`; None where it cannot be had.
    """

    budget: float
    mean_layers: float
    metric: float
    retained: float | None
    divergence: float
    metric_at: float | None
    divergence_at: float | None
    latency: Latency | None = None


@dataclass(frozen=True)
class Result:
    """An entrant's. `teacher`: full BERT's metric on the same data; `seconds`: of training and figures."""

    name: str
    published: bool
    seed: int
    teacher: float
    seconds: float | None
    figures: tuple[Figures, ...]

    @property
    def system(self) -> str:
        return system_of(self.name, self.published)


def figures_of(summary: Summary, budgets: Sequence[float]) -> dict[float, tuple[BudgetFigures, Figures]]:
    """Of a run at those budgets that it keeps, and the row of its summary that each is made of."""
    rows = {row["budget"]: row for row in summary["budgets"]}
    found = {}
    for budget in budgets:
        if (row := rows.get(budget)) is not None:
            found[budget] = (
                row,
                Figures(
                    budget=budget,
                    mean_layers=row["mean_layers"],
                    metric=row["metric"],
                    retained=row["retained"],
                    divergence=row["divergence"],
                    metric_at=row.get("exact_metric"),
                    divergence_at=row.get("exact_divergence"),
                ),
            )
    return found


def write_result(file: Path, result: Result) -> None:
    with replaced(file) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_result(file: Path) -> Result:
    """
    Raises:
        BundleError: it is damaged.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"{file}: damaged ({first_line(error)}); remove it, and compare goes on from there"
        ) from error
