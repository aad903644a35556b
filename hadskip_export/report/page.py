"""A result as one HTML file that opens from disk: nothing is fetched, pictures are in it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import markupsafe
from matplotlib import style
from matplotlib.figure import Figure

from hadskip_export.report.plots import METRIC_NAMES, PLOTS, STYLE, latencies, layers_run, layers_used, parts, systems
from hadskip_export.support.files import replaced
from hadskip_export.support.words import printable

if TYPE_CHECKING:
    from hadskip_export.commands.bench import Benchmark, Row
    from hadskip_export.commands.compare import Comparison
    from hadskip_export.data.runs import Summary

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("hadskip_export.report"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def write_comparison(found: Comparison, file: Path, about: dict[str, Any]) -> None:
    """
    Args:
        about: what it was made with, by name.
    """
    metric = METRIC_NAMES.get(found.metric, found.metric)
    with style.context(STYLE, after_reset=True):
        picture = _inline(systems(found), f"{metric} of every system at every budget; the tables have the numbers")
    budgets = [(budget, list(rows)) for budget, rows in itertools.groupby(found.lines, lambda line: line.budget)]
    seeds = max(line.seeds for line in found.lines)
    _write(
        file, "comparison.html", found=found, metric=metric, picture=picture, about=about, seeds=seeds, budgets=budgets
    )


def write_benchmark(found: Benchmark, name: str, file: Path, about: dict[str, Any]) -> None:
    """
    Args:
        name: of the bundle.
        about: as `write_comparison` has it.
    """
    with style.context(STYLE, after_reset=True):
        pictures = [list(_pictures(row)) for row in found.rows]
    _write(file, "benchmark.html", found=found, name=name, about=about, pictures=pictures)


WORDS_OF_PLOTS = {
    "usage": "Which layers run: the share of texts that run each, at each budget.",
    "histogram": "How many layers run: the share of texts by how many they ran, at each budget.",
    "frontier": "The metric by the layers that run, and what one set of layers for all texts reaches.",
}


def write_run(found: Summary, asked: float, file: Path, about: dict[str, Any]) -> None:
    """
    Args:
        asked: the default budget, in layers.
        about: as `write_comparison` has it.
    """
    with style.context(STYLE, after_reset=True):
        pictures = [(_inline(draw(found), WORDS_OF_PLOTS[name]), WORDS_OF_PLOTS[name]) for name, draw in PLOTS.items()]
    rows = [{"skill": None} | row for row in found["budgets"]]
    summary = {"evaluated_on": None} | found | {"budgets": rows}
    metric = METRIC_NAMES.get(found["metric"], found["metric"])
    _write(file, "run.html", found=summary, metric=metric, asked=asked, pictures=pictures, about=about)


def _pictures(row: Row) -> list[tuple[str, str]]:
    """Pictures and what stands below them."""
    told = f"p50 {row.p50:.2f} ms beside full BERT's {row.full_p50_ms:.2f} ms, p99 {row.p99:.2f} beside"
    found = [(latencies(row), f"{told} {row.full_p99_ms:.2f} ms. Further left is better.")]
    if row.data is not None:
        words = f"{row.mean_layers:.2f} of {row.layers} layers on average, over all texts of {row.data}."
        found.append((layers_run(row), words))
        found.append((layers_used(row), "The share of texts that run each layer."))
    if row.profile is not None:
        found.append((parts(row.profile), f"{sum(row.profile.values()):.2f} ms in all."))
    return [(_inline(figure, words), words) for figure, words in found]


def _write(file: Path, template: str, **values: Any) -> None:
    page = PAGES.get_template(template).render(**values)
    with replaced(file) as part:
        part.write_text(printable(page), encoding="utf-8")


def _inline(figure: Figure, alternative: str) -> str:
    """As an SVG element that a page can hold, with words for who cannot see it."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, _, element = content.getvalue().partition("<svg ")
    return f'<svg role="img" aria-label="{markupsafe.escape(alternative)}" {element}'
