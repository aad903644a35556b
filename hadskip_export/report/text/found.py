"""What there is: in a bundle or a run, on a machine, where a command has been."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hadskip_export.data.problems import SINGLE, Problem
from hadskip_export.report.text.checked import labelled_data, parity
from hadskip_export.report.text.timed import benchmark
from hadskip_export.report.text.trained import training
from hadskip_export.support.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from hadskip_export.bulk.job import Scored
    from hadskip_export.commands.demo import Demo, Example
    from hadskip_export.commands.doctor import Diagnosis
    from hadskip_export.commands.inspect import Inspection
    from hadskip_export.routing.drift import Drift
    from hadskip_export.routing.points import Point
    from hadskip_export.runtime.manifest import EngineInfo, Manifest, RouterInfo


def inspection(found: Inspection) -> list[str]:
    """A bundle or a run, in a screenful; or how far its answers have drifted."""
    if found.drift is not None:
        return _drift(found.drift)
    lines = training(found.content) if isinstance(found.content, dict) else _manifest(found.content)
    return [*lines, *(f"written: {file}" for file in found.plots)]


def _drift(drift: Drift) -> list[str]:
    verdict = "much has changed; calibrate on texts of today" if drift.is_much else "within what is usual"
    return [
        f"layers run by {drift.inputs} inputs at a budget of {drift.budget:g}, and when the point was met",
        f"{'layers':>8} {'then':>7} {'now':>7}",
        *(
            f"{layers:>8} {drift.expected.get(layers, 0):>7.1%} {drift.seen.get(layers, 0):>7.1%}"
            for layers in sorted({*drift.expected, *drift.seen})
        ),
        f"population stability index {drift.index:.3f}: {verdict}",
    ]


def _manifest(manifest: Manifest) -> list[str]:
    model = manifest.model
    size = sum(file.size for file in manifest.files.values())
    return [
        f"{manifest.task}: {model.family}, {counted(model.layers, 'layer')} of {model.hidden_size}",
        f"tokens: {model.max_length} at most, longer inputs are cut",
        f"labels: {_labels(model.problem)}",
        f"router: {_routing(manifest.router)}",
        f"files: {len(manifest.files)}, {size / 1e6:.1f} MB, opset {manifest.opset}, made by {manifest.created_by}",
        *map(_engine, manifest.engines),
        "operating points:",
        *(line for point in manifest.points for line in _point(point, manifest)),
    ]


def _routing(router: RouterInfo) -> str:
    if router.route is not None:
        return f"static, layers {' '.join(map(str, router.route))}"
    return f"{router.kind.replace('-', ' ')}, by {router.criterion}" if router.has_exits else router.kind


def _labels(problem: Problem) -> str:
    """Their names, and what an answer is where it is not one of them."""
    if problem.is_score:
        return f"none, a score ({problem.type})"
    if problem.type == SINGLE:
        return ", ".join(problem.labels)
    thresholds = zip(problem.labels, problem.thresholds, strict=True)
    return f"{', '.join(f'{label} from {threshold:g}' for label, threshold in thresholds)} ({problem.type})"


def _engine(engine: EngineInfo) -> str:
    built = ", ".join(f"{library} {version}" for library, version in engine.versions.items())
    return f"engine {engine.name}: parity {engine.parity}, {built}, {engine.chip}"


def _point(point: Point, manifest: Manifest) -> Iterator[str]:
    """A budget, what was seen at it, and the commonest routes there."""
    default = ", the default" if point.budget == manifest.default_budget else ""
    metric = "" if point.metric is None else f", {manifest.metric} {point.metric:.4f}"
    full = "" if point.full_metric is None else f", full BERT's {point.full_metric:.4f}"
    met = f"{point.mean_layers:.2f} on {point.data}{metric}{full}"
    yield f"  {point.budget:g} of {counted(manifest.model.layers, 'layer')}{default}: {met}"
    for route, share in point.routes:
        yield f"    {share:>6.1%}  {', '.join(map(str, route)) or 'none'}"


def scored(done: Scored, out: Path) -> list[str]:
    """Of `score`."""
    lines = [f"{done.rows:,} rows in {counted(done.parts, 'part')}, {done.computed:,} of them computed now"]
    if done.empty:
        lines.append(f"without a row: {', '.join(done.empty)}")
    if done.refused:
        lines.append(f"{done.refused:,} of these have an error for an answer")
    return [*lines, f"written: {out}"]


def diagnosis(found: Diagnosis) -> list[str]:
    """The machine, what is ready on it or what that lacks, and what to build."""
    about, told = found.environment, "not told by this system"
    if found.features is not None:
        told = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found.features.items())
    lacks = {f"engine {name}": lack for name, lack in found.engines.items()} | {"training and build": found.training}
    return [
        f"chip: {about['chip']}, {counted(about['cpus'], 'CPU')}",
        f"features: {told}",
        "versions: " + ", ".join(f"{library} {version}" for library, version in about["versions"].items()),
        *(f"{name}: {'ready' if lack is None else lack}" for name, lack in lacks.items()),
        *(
            f"{name}: {ms:.2f} ms for a BERT-base layer of {found.tokens} tokens"
            for name, ms in (found.layer_ms or {}).items()
        ),
        f"recommended: {found.recommendation}",
    ]


def demo(done: Demo) -> list[str]:
    """The whole way: what training, validation and benchmark found, and where everything is."""
    checked = [] if done.validation.data is None else labelled_data(done.validation.data)[:2]
    return [
        *training(done.summary),
        "",
        *parity(done.validation.parity)[-1:],
        *checked,
        "",
        *benchmark(done.benchmark),
        "",
        "at work, every layer and every gate an engine of its own:",
        *(line for example in done.examples for line in _at_work(example)),
        "",
        f"run: {done.run}",
        f"bundle: {done.bundle}",
        f"figures: {done.figures}",
        f'try: hadskip-export predict {done.bundle} "a gripping film"',
    ]


def _at_work(example: Example) -> list[str]:
    """Which engines one text called, in their order; a layer that was skipped is left out."""
    return [
        f"  {example.text!r}: {example.prediction.label}, layers"
        f" {', '.join(map(str, example.prediction.layers)) or 'none'}",
        f"    {' > '.join(example.engines)}",
    ]
