"""ONNX pieces -> what one engine runs. No torch: a bundle can be given another engine where it will serve."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from hadskip_export.environment import chip
from hadskip_export.errors import EngineError
from hadskip_export.exporters.parity import LOGITS_TOLERANCE, ROUTE_EPSILON, ParityReport
from hadskip_export.exporters.quantise import quantise, quantise_weights
from hadskip_export.progress import track
from hadskip_export.runtime.bundle import EngineInfo, Tolerance
from hadskip_export.runtime.engines import ENGINES, engine_class, is_reduced

# Who makes an engine's own form of a piece; where there is none, it runs the ONNX pieces themselves.
MAKERS: dict[tuple[str, str], Callable[[Path, Path], None]] = {
    ("ort", "int8"): quantise,
    ("openvino", "int8"): quantise_weights,
}


def check_engine(engine: str, precision: str) -> None:
    """
    Raises:
        EngineError: no such engine, its library is not installed, or it has no such precision.
    """
    if engine not in ENGINES:
        raise EngineError(f"--engine {engine}: not known; there are {', '.join(ENGINES)}")
    precisions = engine_class(engine).precisions
    if precision not in precisions:
        raise EngineError(f"--precision {precision}: not to be had with {engine}; there are {', '.join(precisions)}")
    engine_class(engine).versions()


def compile_engine(
    bundle: Path,
    pieces: dict[str, str],
    engine: str,
    precision: str,
    gates: Literal["separate", "lookahead", "none"],
    num_layers: int,
) -> EngineInfo:
    """Writes what an engine has of its own into a new folder under `engines/`; its parity is yet to be checked.

    Args:
        bundle: the bundle's folder.
        pieces: piece -> fp32 ONNX file, relative to it.
    """
    folder = _free_folder(bundle, f"engines/{engine}-{precision}")
    (bundle / folder).mkdir(parents=True)
    files = dict(pieces)
    make = MAKERS.get((engine, precision))
    if make is not None:
        own = {file: f"{folder}/{Path(file).name}" for piece, file in pieces.items() if is_reduced(piece)}
        for source, out in track(own.items(), len(own), f"{engine}-{precision}"):
            make(bundle / source, bundle / out)
        files = {piece: own.get(file, file) for piece, file in pieces.items()}
    versions = engine_class(engine).versions()
    unchecked = Tolerance((ROUTE_EPSILON,) * num_layers, LOGITS_TOLERANCE)
    return EngineInfo(engine, precision, gates, versions, chip(), folder, files, "unverified", unchecked)


def note_parity(bundle: Path, info: EngineInfo, report: ParityReport) -> EngineInfo:
    """The engine with what its check found, which is also written beside it."""
    (bundle / info.folder / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    return replace(info, parity=report.parity, first_bad_piece=report.first_bad_piece, tolerance=report.tolerance)


def _free_folder(bundle: Path, name: str) -> str:
    """`name`, or with a number: an engine that is rebuilt must not write over the one that is being served."""
    number, folder = 1, name
    while (bundle / folder).exists():
        number += 1
        folder = f"{name}-{number}"
    return folder
