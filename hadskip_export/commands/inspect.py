"""`inspect`: what a bundle or a run folder is, in a screenful."""

from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.runtime.bundle import MANIFEST, Manifest, read_bundle
from hadskip_export.support.errors import BundleError, optional_import


def inspect(path: str | Path, plots: str | Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """Reads a bundle (checking it) or a finished run.

    Args:
        plots: a folder to draw the run's summary into, see `hadskip_export.report.plots`.

    Returns:
        The manifest or summary as plain data, and the lines a person reads.

    Raises:
        BundleError: neither of the two, or a damaged one; a bundle with `plots`, or a file where those should go.
        EngineError: a run needs the extra `train`, and `plots` the extra `plots`.
    """
    if not (Path(path) / MANIFEST).is_file() and (Path(path) / "recipe.json").is_file():
        optional_import("torch", "train")
        from hadskip_export.trainers.run_folder import read_run
        from hadskip_export.trainers.summary import table

        summary = read_run(Path(path))[2]
        return summary, [*table(summary).splitlines(), *_draw(summary, plots)]
    manifest = read_bundle(path).manifest
    if plots is not None:
        raise BundleError(f"{path}: a bundle has nothing to plot; give --plots with the run it was built from")
    return msgspec.to_builtins(manifest), _lines(manifest)


def _draw(summary: dict[str, Any], plots: str | Path | None) -> list[str]:
    if plots is None:
        return []
    optional_import("matplotlib", "plots")
    from hadskip_export.report.plots import write_plots

    return [f"written: {file}" for file in write_plots(summary, Path(plots))]


def _lines(manifest: Manifest) -> list[str]:
    model, router = manifest.model, manifest.router
    routing = f"{router.kind}, budget {router.budget:g} of {model.layers}, threshold {router.threshold:+.4f} logits"
    if router.route is not None:
        routing = f"static, layers {' '.join(map(str, router.route))}"
    size = sum(file.size for file in manifest.files.values())
    lines = [
        f"{manifest.task}: {model.family}, {model.layers} layers of {model.hidden_size}",
        f"tokens: {model.max_length} at most, longer inputs are cut",
        f"labels: {', '.join(model.labels)}",
        f"router: {routing}",
        f"files: {len(manifest.files)}, {size / 1e6:.1f} MB, opset {manifest.opset}, made by {manifest.created_by}",
    ]
    for engine in manifest.engines:
        built = ", ".join(f"{library} {version}" for library, version in engine.versions.items())
        lines.append(f"engine {engine.name}: gates {engine.gates}, parity {engine.parity}, {built}, {engine.chip}")
        if engine.guess is not None:
            lines.append(f"  of inputs alone tries layers {' '.join(map(str, engine.guess))} first, as one engine")
        if engine.single == "graph":
            lines.append(f"  runs inputs {'alone ' if engine.batches == 'chain' else ''}as one engine")
    if manifest.graph is not None:
        lines.append(f"one-file graph: {manifest.graph}")
    held_out = manifest.held_out
    if held_out is not None:
        lines.append(f"held-out slice: {held_out.mean_layers:.2f} layers on average; layers run by share of inputs:")
        lines += [
            f"  {count:>2} {share:>6.1%} {'#' * round(40 * share)}"
            for count, share in enumerate(held_out.histogram)
            if share
        ]
        lines.append("commonest routes:")
        lines += [
            f"  {share:>6.1%}  {', '.join(map(str, route)) or 'none'}" for route, share in held_out.commonest_routes
        ]
    return lines
