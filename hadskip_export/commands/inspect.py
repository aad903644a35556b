"""`inspect`: what a bundle or a run folder is."""

from dataclasses import dataclass
from pathlib import Path

from hadskip_export.data.runs import Summary, read_run
from hadskip_export.runtime.bundle import MANIFEST, Manifest, read_bundle
from hadskip_export.support.errors import BundleError, optional_import


@dataclass(frozen=True)
class Inspection:
    """A bundle's manifest or a run's summary.json, and the pictures that were drawn of the run."""

    content: Manifest | Summary
    plots: tuple[Path, ...] = ()


def inspect(path: str | Path, plots: str | Path | None = None) -> Inspection:
    """Reads a bundle (checking it) or a finished run.

    Args:
        plots: a folder to draw the run's summary into, see `hadskip_export.report.plots`.

    Raises:
        BundleError: neither of the two, or a damaged one; a bundle with `plots`, or a file where those should go.
        EngineError: `plots` needs the extra `plots`.
    """
    if not (Path(path) / MANIFEST).is_file() and (Path(path) / "recipe.json").is_file():
        summary = read_run(Path(path)).summary
        return Inspection(summary, () if plots is None else _draw(summary, Path(plots)))
    manifest = read_bundle(path).manifest
    if plots is not None:
        raise BundleError(f"{path}: a bundle has nothing to plot; give --plots with the run it was built from")
    return Inspection(manifest)


def _draw(summary: Summary, folder: Path) -> tuple[Path, ...]:
    optional_import("matplotlib", "plots")
    from hadskip_export.report.plots import write_plots

    return tuple(write_plots(summary, folder))
