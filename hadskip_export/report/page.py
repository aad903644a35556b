"""A result as one HTML file that opens from disk: nothing is fetched, pictures are in it."""

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from matplotlib import style
from matplotlib.figure import Figure

from hadskip_export.report.plots import METRIC_NAMES, STYLE, systems
from hadskip_export.support.files import replaced

if TYPE_CHECKING:
    from hadskip_export.commands.compare import Comparison

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("hadskip_export.report"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write_comparison(found: "Comparison", file: Path, about: dict[str, Any]) -> None:
    """
    Args:
        about: what it was made with, by name.
    """
    metric = METRIC_NAMES.get(found.metric, found.metric)
    with style.context(STYLE, after_reset=True):
        picture = _inline(
            systems(found), f"{metric} of every system by what its calls take; the tables have its numbers"
        )
    page = PAGES.get_template("comparison.html").render(
        found=found, metric=metric, picture=picture, about=about, seeds=max(line.seeds for line in found.lines),
        budgets=[(budget, list(rows)) for budget, rows in itertools.groupby(found.lines, lambda line: line.budget)],
    )  # fmt: skip
    with replaced(file) as part:
        part.write_text(page, encoding="utf-8")


def _inline(figure: Figure, alternative: str) -> str:
    """As an SVG element that a page can hold, with words for who cannot see it."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, _, element = content.getvalue().partition("<svg ")
    return f'<svg role="img" aria-label="{alternative}" {element}'
