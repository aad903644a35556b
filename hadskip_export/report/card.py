"""A bundle's page on the Hugging Face hub, made of its manifest alone."""

from dataclasses import dataclass

from hadskip_export.data.problems import RANKING
from hadskip_export.routing.points import Point
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.support.words import counted

TAGS = ("hadskip-export", "onnx", "layer-skipping", "early-exit")


@dataclass(frozen=True)
class Timed:
    """A row of `bench`, see `benchmark.measure.Figures`."""

    engine: str
    precision: str
    cut: str
    batch: int
    layers_run: float
    p50: float
    full_p50_ms: float
    speedup: float
    data: str | None


@dataclass(frozen=True)
class Times:
    """What `bench` wrote: its rows, and in `environment` the chip."""

    environment: dict[str, object]
    rows: tuple[Timed, ...]


def model_card(manifest: Manifest, repository: str, times: Times | None = None) -> str:
    """Markdown. What it does not know it does not say: whose texts a model learned from, what it may be used for.

    Args:
        times: of this bundle.
    """
    model = manifest.model
    task = "text-ranking" if model.problem_type == RANKING else "text-classification"
    return "\n".join([
        "---",
        "library_name: hadskip-export",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in TAGS),
        "---",
        "",
        f"# {repository.split('/')[-1]}",
        "",
        f"A {model.family} classifier of {counted(model.layers, 'layer')} that runs, for each input, only the layers"
        " that the input needs. Made by hadskip-export.",
        "",
        "```python",
        "from hadskip_export.runtime import Predictor",
        "",
        'predictor = Predictor.load("bundle")',
        'predictor("a text")',
        "```",
        "",
        f"    hadskip-export pull {repository} --out bundle",
        "",
        "## What it answers",
        "",
        f"- Problem: {model.problem_type}. Labels: {', '.join(model.labels)}.",
        f"- It reads {model.max_length} tokens of an input, and cuts longer ones.",
        f"- Engines: {', '.join(engine.name for engine in manifest.engines)}.",
        "",
        "## Operating points",
        "",
        f"| budget | layers run | {manifest.metric} | with all layers | met on |",
        "|---|---|---|---|---|",
        *(_point(point, manifest) for point in manifest.points),
        "",
        "A budget holds on texts like those it was met on.",
        *([] if times is None else _timed(times)),
        "",
    ])  # fmt: skip


def _point(point: Point, manifest: Manifest) -> str:
    default = ", the default" if point.budget == manifest.default_budget else ""
    metrics = ("" if value is None else f"{value:.4f}" for value in (point.metric, point.full_metric))
    return f"| {point.budget:g}{default} | {point.mean_layers:.2f} | {' | '.join(metrics)} | {point.data} |"


def _timed(times: Times) -> list[str]:
    rows = [
        f"| {row.engine}-{row.precision}-{row.cut} | {row.batch} | {row.layers_run:.2f} | {row.p50:.2f} |"
        f" {row.full_p50_ms:.2f} | {row.speedup:.2f} |"
        for row in times.rows
    ]
    return [
        "",
        f"## Time on {times.environment.get('chip')}",
        "",
        "| engine | inputs | layers run | p50 ms | with all layers | speedup |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
