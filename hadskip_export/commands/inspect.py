"""`inspect`: what a bundle or a run folder is, and whether a bundle's inputs are still what they were."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hadskip_export.data.rows import Row, read_rows
from hadskip_export.data.runs import Run, Summary, read_json, read_run
from hadskip_export.report.plain import check_page
from hadskip_export.routing.budgets import budget_name, resolve_budget
from hadskip_export.routing.drift import FEWEST, Drift, drift_from, expected_layers
from hadskip_export.runtime.bundle import MANIFEST, read_bundle
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.support.errors import BudgetError, BundleError, DataError, optional_import
from hadskip_export.support.words import as_command

LAYERS = "layers"  # the column of an answer


@dataclass(frozen=True)
class Inspection:
    """A bundle's manifest or a run's summary.json, the pictures that were drawn of the run, and how far a bundle's
    answers have drifted."""

    content: Manifest | Summary
    plots: tuple[Path, ...] = ()
    drift: Drift | None = None


def inspect(
    path: str | Path,
    plots: str | Path | None = None,
    *,
    report: str | Path | None = None,
    drift: str | Path | None = None,
    budget: float | None = None,
) -> Inspection:
    """Reads a bundle (checking it) or a finished run.

    Args:
        plots: a folder to draw the run's summary into, see `hadskip_export.report.plots`.
        report: an HTML file to write, with the run's figures and pictures.
        drift: answers of the bundle, as `predict --output` writes them: do these inputs run as many layers as the texts
            did that its operating point was met on?
        budget: of the operating point of these answers; the default one if left out.

    Raises:
        BundleError: neither of the two, or a damaged one; a bundle with `plots` or `report`, a run with `drift`, or a
            file where pictures should go.
        BudgetError: no such operating point, or one that does not say what texts ran.
        DataError: answers that cannot be read, without `layers`, or too few.
        EngineError: `plots` and `report` need the extra `plots`.
    """
    if drift is None and budget is not None:
        raise DataError(f"--budget {budget:g}: goes with --drift; leave it out")
    if not (Path(path) / MANIFEST).is_file() and (Path(path) / "recipe.json").is_file():
        if drift is not None:
            raise BundleError(f"{path}: a run has not answered anything; give --drift with the bundle that did")
        if report is not None:
            check_page(Path(report))
        run = read_run(Path(path))
        written = () if plots is None else _draw(run.summary, Path(plots))
        return Inspection(run.summary, (*written, *([] if report is None else [_write_report(run, Path(report))])))
    manifest = read_bundle(path).manifest
    if plots is not None:
        raise BundleError(f"{path}: a bundle has nothing to plot; give --plots with the run it was built from")
    if report is not None:
        raise BundleError(f"{path}: a bundle has no figures of training; give --report with its run, or bench --report")
    return Inspection(manifest, drift=None if drift is None else _drift(manifest, Path(drift), budget))


def _drift(manifest: Manifest, answers: Path, budget: float | None) -> Drift:
    wanted = manifest.default_budget if budget is None else resolve_budget(budget, manifest.model.layers)
    point = next((point for point in manifest.points if point.budget == wanted), None)
    if point is None:
        have = ", ".join(budget_name(point.budget) for point in manifest.points)
        raise BudgetError(f"--budget {wanted:g}: the bundle has operating points for {have}")
    if not expected_layers(point) or not manifest.router.decides:
        raise BudgetError(
            f"--budget {wanted:g}: nothing to compare with, for the bundle does not say what texts ran there;"
            " hadskip-export calibrate --write notes it"
        )
    layers = list(_layers_in(answers))
    if (found := drift_from(point, layers)) is None:
        raise DataError(f"{answers}: {len(layers)} answers say nothing; give at least {FEWEST}")
    return found


def _layers_in(answers: Path) -> Iterator[int]:
    """How many layers each answer ran."""
    for row in read_rows(answers):
        yield _count(row)


def _count(row: Row) -> int:
    value = row.values.get(LAYERS)
    listed = value.split() if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(str(layer).isdigit() for layer in listed):
        raise row.error(f"no list of layers in {LAYERS!r}; give what predict --output wrote")
    return len(listed)


def _write_report(run: Run, file: Path) -> Path:
    from hadskip_export.report.page import write_run

    settings = read_json(run.paths.recipe)
    named = {name: settings[name] for name in ("model", "method", "train", "eval", "seed") if settings.get(name)}
    about = {"command": as_command("inspect", run.paths.path, report=file), **named}
    write_run(run.summary, run.budget, file, about)
    return file


def _draw(summary: Summary, folder: Path) -> tuple[Path, ...]:
    optional_import("matplotlib", "plots")
    from hadskip_export.report.plots import write_plots

    return tuple(write_plots(summary, folder))
