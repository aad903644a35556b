"""`inspect`: what a bundle or a run folder is, in a screenful."""

from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.errors import optional_import
from hadskip_export.runtime.bundle import MANIFEST, Manifest, read_bundle


def inspect(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Reads a bundle (checking it) or a finished run.

    Returns:
        The manifest or summary as plain data, and the lines a person reads.

    Raises:
        BundleError: neither of the two, or a damaged one.
        EngineError: a run needs the extra `train`.
    """
    if not (Path(path) / MANIFEST).is_file() and (Path(path) / "recipe.json").is_file():
        optional_import("torch", "train")
        from hadskip_export.trainers.run_folder import read_run
        from hadskip_export.trainers.summary import table

        summary = read_run(Path(path))[2]
        return summary, table(summary).splitlines()
    manifest = read_bundle(path).manifest
    return msgspec.to_builtins(manifest), _lines(manifest)


def _lines(manifest: Manifest) -> list[str]:
    model, router = manifest.model, manifest.router
    size = sum(file.size for file in manifest.files.values())
    lines = [
        f"{manifest.task}: {model.family}, {model.layers} layers of {model.hidden_size}",
        f"tokens: {model.max_length} at most, longer inputs are cut",
        f"labels: {', '.join(model.labels)}",
        f"router: {router.kind}, budget {router.budget:g} of {model.layers}, threshold {router.threshold:+.4f} logits",
        f"files: {len(manifest.files)}, {size / 1e6:.1f} MB, opset {manifest.opset}, made by {manifest.created_by}",
    ]
    for engine in manifest.engines:
        built = ", ".join(f"{library} {version}" for library, version in engine.versions.items())
        name = f"{engine.engine}-{engine.precision}"
        lines.append(f"engine {name}: gates {engine.gates}, parity {engine.parity}, {built}, {engine.chip}")
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
