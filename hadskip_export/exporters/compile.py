"""ONNX pieces -> what one engine runs. No torch: a bundle can be given another engine where it will serve."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hadskip_export.exporters.conditional import join_conditional
from hadskip_export.exporters.half import halve
from hadskip_export.exporters.joining import fuse, join_route
from hadskip_export.exporters.quantise import quantise, quantise_weights
from hadskip_export.exporters.tensorrt import build_engine
from hadskip_export.exporters.weights import pack
from hadskip_export.routing.routes import Route
from hadskip_export.runtime.bundle import (
    Bundle,
    EngineInfo,
    HeldOut,
    ModelInfo,
    RouterInfo,
    Tolerance,
    layer_name,
)
from hadskip_export.runtime.engines import ENGINES, Batches, GateLayout, Single, engine_class, is_reduced
from hadskip_export.runtime.engines.tensorrt import LIBRARIES
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import BundleError, EngineError
from hadskip_export.support.progress import say, track
from hadskip_export.verification.parity import LOGITS_TOLERANCE, ROUTE_EPSILON, ParityReport


@dataclass(frozen=True)
class Form:
    """An engine's own form of the pieces.

    Args:
        make: (ONNX file, file to write, the most tokens of an input, whether the piece is computed below fp32).
        every: of all pieces, or only of those below fp32, the others being the ONNX files.
    """

    make: Callable[[Path, Path, int, bool], None]
    every: bool = False
    suffix: str = ".onnx"


# Where there is none, an engine runs the ONNX pieces themselves, but for layers that gates are fused with.
FORMS = {
    ("ort", "int8"): Form(lambda source, out, *_: quantise(source, out)),
    ("ort-cuda", "fp16"): Form(lambda source, out, *_: halve(source, out)),
    ("openvino", "int8"): Form(lambda source, out, *_: quantise_weights(source, out)),
} | {
    (name, precision): Form(partial(build_engine, name, precision), every=True, suffix=".engine")
    for name in LIBRARIES
    for precision in ("fp32", "fp16")
}


def check_engine(engine: str, precision: str, gates: GateLayout | None = None, single: Single | None = None) -> None:
    """
    Raises:
        EngineError: no such engine, its library is not installed, or it has no such precision or layout of gates, or
            cannot run an input that comes alone like this.
    """
    if engine not in ENGINES:
        raise EngineError(f"--engine {engine}: not known; there are {', '.join(ENGINES)}")
    precisions = engine_class(engine).precisions
    if precision not in precisions:
        raise EngineError(f"--precision {precision}: not to be had with {engine}; there are {', '.join(precisions)}")
    layouts = engine_class(engine).layouts(precision)
    if gates is not None and gates not in layouts:
        raise EngineError(f"--gates {gates}: not to be had with {engine}-{precision}; there are {', '.join(layouts)}")
    singles = engine_class(engine).singles(precision)
    if single is not None and single not in singles:
        raise EngineError(f"--single {single}: not to be had with {engine}-{precision}; there is {', '.join(singles)}")
    engine_class(engine).versions()


def check_measurable(
    engine: str, precision: str, gates: GateLayout | None = None, single: Single | None = None
) -> None:
    """
    Raises:
        EngineError: see `check_engine`; also an engine that this machine can build and not run.
    """
    check_engine(engine, precision, gates, single)
    if lack := engine_class(engine).why_not_here():
        raise EngineError(f"{engine}-{precision}: cannot be measured here: {lack}")


def compile_engine(
    bundle: Path,
    pieces: dict[str, str],
    model: ModelInfo,
    engine: str,
    precision: str,
    gates: GateLayout | None,
    single: Single = "chain",
    guess: Route | None = None,
) -> EngineInfo:
    """Writes what an engine has of its own into a new folder under `engines/`; its parity is yet to be checked.

    Args:
        bundle: the bundle's folder.
        pieces: piece -> fp32 ONNX file, relative to it.
        gates: their layout in the chain; if None the engine's fastest, or the one that needs no file more where no call
            goes through the chain.
        single: how an input that comes alone is run.
        guess: the route to make one engine of, if that is how.

    Raises:
        EngineError: a piece that cannot be made.
    """
    kind = engine_class(engine)
    batches: Batches = kind.batches if single == "graph" else "chain"
    whole: list[str] = [piece for piece in dict.fromkeys((single, batches)) if piece != "chain"]
    layout: GateLayout | Literal["none"] = gates or kind.layouts(precision)[0]
    if gates is None and layout == "fused" and batches != "chain":
        layout = "separate"  # not worth writing all layers once more: no call goes through the chain
    if "gates" not in pieces:
        layout = "none"
    folder = _free_folder(bundle, f"engines/{engine}-{precision}")
    (bundle / folder).mkdir(parents=True)
    try:
        if kind.reads == "weights":
            packed = f"{folder}/weights.safetensors"
            pack({piece: bundle / file for piece, file in pieces.items()}, model.layers, bundle / packed)
            files = dict.fromkeys([*pieces, *whole], packed)
        else:
            files = _make_form(bundle, folder, pieces, model, engine, precision)
            joined = _join(bundle, folder, files, model, precision == "bf16", whole, batches, guess)
            if layout == "fused":
                files = _fuse_gates(bundle, folder, files, model.layers)
            files |= joined
    except BaseException:
        shutil.rmtree(bundle / folder)
        raise
    unchecked = Tolerance((ROUTE_EPSILON,) * model.layers, LOGITS_TOLERANCE)
    versions, chip = kind.versions(), kind.chip()
    return EngineInfo(
        engine, precision, layout, versions, chip, folder, files, "unverified", unchecked, None, single, guess, batches
    )


def _make_form(
    bundle: Path, folder: str, pieces: dict[str, str], model: ModelInfo, engine: str, precision: str
) -> dict[str, str]:
    """Writes the engine's own form of the pieces, if it has one, and returns the files of all pieces."""
    form = FORMS.get((engine, precision))
    if form is None:
        return dict(pieces)
    own = {file: piece for piece, file in pieces.items() if form.every or is_reduced(piece)}
    made = {file: f"{folder}/{Path(file).stem}{form.suffix}" for file in own}
    for file, piece in track(own.items(), len(own), f"{engine}-{precision}"):
        form.make(bundle / file, bundle / made[file], model.max_length, is_reduced(piece))
    return {piece: made.get(file, file) for piece, file in pieces.items()}


def _join(
    bundle: Path,
    folder: str,
    files: dict[str, str],
    model: ModelInfo,
    bf16: bool,
    whole: Sequence[str],
    batches: Batches,
    guess: Route | None,
) -> dict[str, str]:
    """Writes each engine of `whole`, which is made of several pieces, and returns their files."""
    parts = {piece: bundle / file for piece, file in files.items()}
    joined: dict[str, str] = {}
    for piece in whole:
        joined[piece] = f"{folder}/{piece}.onnx"
        out, shared = bundle / joined[piece], bundle / joined["graph"] if piece == "rows" else None
        if guess is not None:
            join_route(parts, model.layers, guess, out)
        else:
            join_conditional(parts, model, out, bf16, batches=piece == batches, shared=shared)
    return joined


def _fuse_gates(bundle: Path, folder: str, files: dict[str, str], num_layers: int) -> dict[str, str]:
    """Writes all layers but the last with the gates that come after them, and returns the files of all pieces. What was
    only made to be fused goes."""
    fused = {layer_name(index): f"{folder}/{layer_name(index)}_gates.onnx" for index in range(num_layers - 1)}
    for first, piece in track(enumerate(fused, 1), len(fused), "gates into layers"):
        fuse(bundle / files[piece], bundle / files["gates"], first, bundle / fused[piece])
    after = files | fused
    for file in set(files.values()) - set(after.values()):
        if file.startswith(f"{folder}/"):
            (bundle / file).unlink()
    return after


def check(bundle: Bundle, info: EngineInfo, how: Callable[[Predictor], ParityReport]) -> ParityReport | None:
    """Loads a new engine and compares it as told; None, said aloud, where this machine cannot run it."""
    lack = engine_class(info.engine).why_not_here()
    if lack is not None:
        say(f"{info.name}: built, parity unverified: {lack}")
        return None
    with Predictor(Bundle(bundle.path, replace(bundle.manifest, engines=(info,)))) as predictor:
        return how(predictor)


def note_parity(bundle: Path, info: EngineInfo, report: ParityReport | None) -> EngineInfo:
    """The engine with what its check found, if there was one, which is also written beside it."""
    if report is None:
        return info
    (bundle / info.folder / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    return replace(info, parity=report.parity, first_bad_piece=report.first_bad_piece, tolerance=report.tolerance)


def _free_folder(bundle: Path, name: str) -> str:
    """`name`, or with a number: an engine that is rebuilt must not write over the one that is being served."""
    number, folder = 1, name
    while (bundle / folder).exists():
        number += 1
        folder = f"{name}-{number}"
    return folder


def resolve_single(
    single: Single | None, engine: str, precision: str, router: RouterInfo, held_out: HeldOut | None
) -> tuple[Single, Route | None]:
    """How an input that comes alone is run, the engine's own way if left out, and the route that `guess` is to try.

    Raises:
        BundleError: the gates decide nothing, or nobody knows what they decide most often.
    """
    if single is None:
        single = "chain" if router.kind == "static" else engine_class(engine).singles(precision)[0]
    if single != "chain" and router.kind == "static":
        raise BundleError(f"--single {single}: every input takes the same route, so nothing is decided; leave it out")
    if single != "guess":
        return single, None
    if held_out is None or not held_out.commonest_routes or not held_out.commonest_routes[0][0]:
        raise BundleError("--single guess: the commonest route is not known, or runs no layer; leave it out")
    return single, held_out.commonest_routes[0][0]
