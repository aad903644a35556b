"""One engine of a bundle: planned, written, verified. What comes after that, `seal` does."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.targets.base import Material
from hadskip_export.exporters.weights import free_name
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.engines import engine_class
from hadskip_export.runtime.manifest import ENGINES_FOLDER, EngineInfo, Tolerance
from hadskip_export.runtime.predictor import LoadOptions, Predictor
from hadskip_export.support.progress import say
from hadskip_export.verification.parity import LOGITS_TOLERANCE, ROUTE_EPSILON, ParityReport

REPORT = "report.json"


def write(bundle: Bundle, plan: EnginePlan) -> EngineInfo:
    """Writes what an engine has of its own; its parity is yet to be checked.

    Raises:
        EngineError: a library is not installed, or a piece cannot be made.
    """
    folder = free_name(bundle.path / ENGINES_FOLDER, f"{plan.tag}-{plan.cut}", "")
    folder.mkdir(parents=True)
    relative = folder.relative_to(bundle.path).as_posix()
    files = plan.target.build(Material(bundle.path, bundle.manifest, plan.precision, plan.cut, plan.tag, relative))
    kind = engine_class(plan.engine)
    unchecked = Tolerance((ROUTE_EPSILON,) * bundle.manifest.model.layers, LOGITS_TOLERANCE)
    return EngineInfo(
        engine=plan.engine,
        precision=plan.precision,
        cut=plan.cut,
        versions=kind.versions(),
        chip=kind.chip(),
        folder=relative,
        files=files,
        parity="unverified",
        tolerance=unchecked,
    )


def verify(
    bundle: Bundle, info: EngineInfo, check: Callable[[Predictor], ParityReport]
) -> tuple[EngineInfo, ParityReport | None]:
    """Loads an engine and compares it as told: the engine with what was found, and the report, which is also written
    beside it. No report, said aloud, where this machine cannot run it."""
    lack = engine_class(info.engine).why_not_here()
    if lack is not None:
        say(f"{info.name}: built, parity unverified: {lack}")
        return info, None
    built = Bundle(bundle.path, replace(bundle.manifest, engines=(info,)))
    with Predictor(built, LoadOptions(allow_failed=True)) as predictor:  # what is wrong belongs into the report
        report = check(predictor)
    _write_report(bundle.path / info.folder, report)
    found = replace(info, parity=report.parity, first_bad_piece=report.first_bad_piece, tolerance=report.tolerance)
    return found, report


def _write_report(folder: Path, report: ParityReport) -> None:
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n")
