"""Pictures of a run's summary: the paper's Figures 2 to 6, with every budget the run passed through."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure  # without pyplot: no window, no global list of figures
from matplotlib.ticker import MaxNLocator

from hadskip_export.data.metrics import AGREEMENT
from hadskip_export.data.runs import Summary
from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import replaced

if TYPE_CHECKING:
    from hadskip_export.commands.bench import Row
    from hadskip_export.commands.compare import Comparison

Metric = Literal["metric", "static_metric", "top_route_metric"]

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's: colour-blind readers can tell them apart
INK, GREY, PALE = "#262626", "#6B6B6B", "#E4E4E4"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#8A6A00", "#56B4E9", "#262626", "#7A52A3")
MARKS = "osD^vPX*"
PUBLISHED = ", as published"
SHARES = LinearSegmentedColormap.from_list("shares", ["#F2F6FA", "#6FAED6", BLUE, "#00304D"])
METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    AGREEMENT: "agreement with the teacher",
}
STYLE: dict[str, Any] = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a task is named after its file, and a file may be called a$b$c
    "axes.labelcolor": INK,
    "axes.labelpad": 8,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",  # words stay words: they can be searched and read aloud
    "svg.hashsalt": "hadskip-export",  # the same summary gives the same file
    "savefig.dpi": 200,
    "savefig.bbox": "tight",  # a long title widens the picture and is not cut
    "savefig.pad_inches": 0.15,
}


def write_plots(summary: Summary, folder: Path) -> list[Path]:
    """Draws every picture of `PLOTS` as `<name>.svg` and `<name>.png`, each there whole or not at all.

    Args:
        summary: a run's summary.json.
        folder: where they go; made if it is not there.

    Returns:
        The files written.

    Raises:
        BundleError: `folder` is a file.
    """
    if folder.is_file():
        raise BundleError(f"{folder}: is a file; --plots names a folder")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style.context(STYLE, after_reset=True):  # whatever the user's matplotlibrc says
        for name, draw in PLOTS.items():
            figure = draw(summary)
            for kind in ("svg", "png"):
                file = folder / f"{name}.{kind}"
                _save(figure, file, kind)
                written.append(file)
    return written


def usage(summary: Summary) -> Figure:
    """Figures 2 to 4: the share of inputs that run each layer, a row for every budget."""
    figure, axes = _map_of_shares(summary, "usage", first=1)
    axes.set_xlabel("layer")
    _title(axes, f"{summary['task']}: which layers run", "share of inputs that run each layer, in %")
    return figure


def histogram(summary: Summary) -> Figure:
    """Figure 5: the share of inputs by the number of layers they run, a row for every budget."""
    figure, axes = _map_of_shares(summary, "histogram", first=0)
    for y, row in enumerate(summary["budgets"]):
        axes.plot([row["budget"] - 0.3, row["budget"] + 0.3], [y + 0.36, y + 0.36], color=ORANGE, linewidth=2)
    axes.set_xlabel("layers run")
    _title(axes, f"{summary['task']}: how many layers run", "share of inputs, in %; underlined: the budget")
    return figure


def frontier(summary: Summary) -> Figure:
    """Figure 6: the metric against the layers run; and what fixed sets of layers reach with the same weights."""
    rows, teacher = summary["budgets"], summary["teacher"]["metric"]
    metric = METRIC_NAMES.get(summary["metric"], summary["metric"])
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.axhline(teacher, color=GREY, linewidth=1.2, linestyle="--")
    beside = axes.get_yaxis_transform()  # no series can run through it there
    axes.text(1.01, teacher, f"teacher\n{teacher:.3f}", color=GREY, size=10, va="center", transform=beside)

    def draw(label: str, key: Metric, layers_run: Sequence[float], marks: str, color: str, **look: Any) -> None:
        axes.plot(layers_run, [row[key] for row in rows], marks, color=color, label=label, **look)

    routed = [row["mean_layers"] for row in rows]
    static, commonest = ([len(row[key]) for row in rows] for key in ("static_route", "top_route"))
    # The marks of fixed sets are larger and lie below: where all agree, as with a single route, each still shows.
    hollow = {"markerfacecolor": "white", "markeredgewidth": 1.5, "linewidth": 1.2, "clip_on": False}
    draw("each input its own route", "metric", routed, "o-", BLUE, markersize=4, linewidth=2, zorder=3)
    draw("best fixed set of layers", "static_metric", static, "s-", ORANGE, markersize=7, zorder=2.5, **hollow)
    draw("commonest route for every input", "top_route_metric", commonest, "D", GREEN, markersize=9, **hollow)
    axes.set_xlim(0, summary["layers"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True))
    axes.set(xlabel="layers run on average", ylabel=metric)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    subtitle = "every budget of the run; fixed sets of layers with its weights"
    _title(axes, f"{summary['task']}: {metric} by layers run", subtitle)
    return figure


def systems(found: Comparison) -> Figure:
    """The metric of every system at every budget, against what a call takes or, where nobody timed it, the layers."""
    timed, names = found.engine is not None, list(dict.fromkeys(line.system for line in found.lines))
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.axhline(found.teacher, color=GREY, linewidth=1.2, linestyle="--")
    plain = [name for name in names if not name.endswith(PUBLISHED)]
    for name in names:
        lines = [line for line in found.lines if line.system == name]
        at = [line.p50_ms if timed and line.p50_ms is not None else line.mean_layers for line in lines]
        kind, ours = plain.index(name.removesuffix(PUBLISHED)), name == names[0]
        look: dict[str, Any] = (
            {"linestyle": ":", "markerfacecolor": "white"} if name.endswith(PUBLISHED) else {"linestyle": "-"}
        )
        axes.plot(
            at, [line.metric for line in lines], label=name, color=COLOURS[kind % len(COLOURS)],
            marker=MARKS[kind % len(MARKS)], linewidth=2.6 if ours else 1.2, markersize=7 if ours else 5,
            zorder=3 if ours else 2, **look,
        )  # fmt: skip
    metric = METRIC_NAMES.get(found.metric, found.metric)
    axes.set(xlabel="p50 of a call, ms" if timed else "layers run on average", ylabel=metric)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    _title(axes, f"{found.task}: {metric}", "every system at every budget, mean of the seeds")
    return figure


def latencies(row: Row) -> Figure:
    """The share of calls that took no longer, of the bundle and of full BERT."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    for name, color, width in (("full", GREY, 1.6), ("skip", BLUE, 2.6)):
        found = np.sort(np.concatenate([np.ravel(v) for key, v in row.samples.items() if key.startswith(name)])) * 1e3
        label = "hadskip" if name == "skip" else "full BERT"
        axes.plot(found, np.arange(1, len(found) + 1) / len(found), color=color, linewidth=width, label=label)
    axes.set(xlabel="milliseconds of a call", ylabel="share of calls", ylim=(0, 1.02))
    axes.set_xlim(0, max(row.full_p99_ms, row.p99) * 1.15)
    axes.legend(loc="lower right", frameon=False)
    _title(axes, "How long calls take", "share of calls that took no longer")
    return figure


def layers_run(row: Row) -> Figure:
    """The share of texts by the number of layers that they ran."""
    return _shares(range(len(row.histogram)), row.histogram, "layers run", "How many layers run")


def layers_used(row: Row) -> Figure:
    """The share of texts that ran each layer."""
    return _shares(range(1, row.layers + 1), row.usage, "layer", "Which layers run")


def _shares(places: Sequence[int], shares: Sequence[float], counted: str, title: str) -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(places, shares, color=BLUE, width=0.7)
    axes.bar_label(bars, [f"{share:.0%}" if share else "" for share in shares], fontsize=9)
    axes.set(xlabel=counted, yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True))
    axes.spines["left"].set_visible(False)
    _title(axes, title, "share of the texts")
    return figure


def parts(profile: Mapping[str, float]) -> Figure:
    """Where a call's time goes, in milliseconds."""
    figure = Figure(figsize=(9, 1.2 + 0.26 * len(profile)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(profile), list(profile.values()), color=BLUE, height=0.7)
    axes.bar_label(bars, [f"{value:.2f}" for value in profile.values()], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xticks=[])
    axes.spines["bottom"].set_visible(False)
    _title(axes, "Where a call's time goes", "milliseconds of a call, on average")
    return figure


PLOTS: dict[str, Callable[[Summary], Figure]] = {"usage": usage, "histogram": histogram, "frontier": frontier}


def _map_of_shares(summary: Summary, key: Literal["usage", "histogram"], first: int) -> tuple[Figure, Axes]:
    """A row of cells for every budget: `row[key]` is the shares of the columns `first`, `first + 1`, ..."""
    rows = summary["budgets"]
    shares = [row[key] for row in rows]
    columns = range(first, first + len(shares[0]))
    width, height = min(max(0.45 * len(columns), 4), 11), max(0.42 * len(rows), 1)
    figure = Figure(figsize=(1.8 + width, 1.3 + height), layout="constrained")
    axes = figure.subplots()
    edges = np.arange(len(columns) + 1) + first - 0.5, np.arange(len(rows) + 1) - 0.5
    axes.pcolormesh(*edges, shares, cmap=SHARES, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    for y, row in enumerate(shares):
        for x, share in zip(columns, row, strict=True):
            if share:  # an empty cell is no input at all; a 0, less than half a percent of them
                ink = "white" if share > 0.55 else INK
                axes.text(x, y, f"{100 * share:.0f}", color=ink, size=9, ha="center", va="center")
    axes.invert_yaxis()  # as the homotopy goes: from all layers down to the budget asked for
    axes.set_xticks(columns)
    axes.set_yticks(range(len(rows)), [f"{row['budget']:g}" for row in rows])
    axes.set_ylabel("budget")
    means = axes.secondary_yaxis("right")
    means.set_yticks(range(len(rows)), [f"{row['mean_layers']:.2f}" for row in rows])
    means.set_ylabel("mean layers")
    for side in (axes, means):
        side.tick_params(length=0)
        side.spines[:].set_visible(False)
    return figure, axes


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(textwrap.fill(title, 60), loc="left", weight="bold", pad=26)
    axes.annotate(subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", color=GREY, size=10)


def _save(figure: Figure, file: Path, kind: str) -> None:
    with replaced(file) as part:
        figure.savefig(part, format=kind, metadata={"Date": None})  # with its date no file would equal another
