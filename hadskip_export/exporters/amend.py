"""`build BUNDLE`: what a finished bundle can be given, an engine more or the one-file graph, made from its ONNX pieces
and checked. No torch; whoever serves the bundle meanwhile goes on, for a day with an engine that was replaced."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import filelock

from hadskip_export.exporters.compile import check, check_engine, compile_engine, note_parity, resolve_single
from hadskip_export.exporters.graph import make_graph
from hadskip_export.routing.routes import Route
from hadskip_export.runtime.bundle import GRAPH, Bundle, EngineInfo, GateLayout, Manifest, amend, read_bundle
from hadskip_export.runtime.engines import Single, engine_class
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.errors import BundleError
from hadskip_export.verification.golden import read_golden
from hadskip_export.verification.parity import ParityReport, compare
from hadskip_export.verification.references import OnnxReference, Reference

SETTLING_SECONDS = 600  # to wait for somebody who checks the same engine, several machines share a bundle perhaps
SERVED_SECONDS = 24 * 3600  # that whoever serves an engine may take to load the bundle anew once it is replaced


def add_engine(
    path: Path, engine: str, precision: str, gates: GateLayout | None = None, single: Single | None = None
) -> ParityReport | None:
    """Adds an engine, or makes it anew; see `build`."""
    check_engine(engine, precision, gates, single)
    with _alone(path) as bundle:
        manifest = bundle.manifest
        how, guess = resolve_single(single, engine, precision, manifest.router, manifest.held_out)
        return _add_engine(bundle, engine, precision, gates, how, guess)


def add_graph(path: Path) -> None:
    """Adds the one-file graph, see `make_graph`, unless it is there."""
    with _alone(path) as bundle:
        if bundle.manifest.graph is not None:
            return
        shutil.rmtree(path / GRAPH, ignore_errors=True)  # of a killed build
        try:
            amend(bundle, replace(bundle.manifest, graph=make_graph(bundle)))
        except BaseException:
            shutil.rmtree(path / GRAPH, ignore_errors=True)
            raise


def settled(bundle: Bundle, engine: str | None) -> Bundle:
    """The bundle, in which an engine that was built where it cannot run has been checked on this machine, where it can,
    as `add_engine` would have: parity and, below fp32, the tolerance that is measured are written down.

    Raises:
        BundleError: the bundle cannot be written to.
    """
    path, info = bundle.path, _unsettled(bundle, engine)
    if info is None:
        return bundle
    if not os.access(path, os.W_OK):
        raise BundleError(
            f"{path}: {info.name} was never checked, and what a check finds is to be written there; make it writable"
            " for this once"
        )
    with _alone(path, SETTLING_SECONDS) as bundle:
        info = _unsettled(bundle, engine)
        if info is not None:  # nobody else was faster
            report = check(bundle, info, partial(_compare_golden, OnnxReference(bundle), read_golden(bundle).texts))
            amend(bundle, _with(bundle.manifest, note_parity(path, info, report)))
    return read_bundle(path)


def _unsettled(bundle: Bundle, engine: str | None) -> EngineInfo | None:
    info = bundle.engine(engine)
    runs_here = engine_class(info.engine).why_not_here() is None
    return info if info.parity == "unverified" and runs_here else None


def _compare_golden(reference: Reference, texts: Sequence[Text], predictor: Predictor) -> ParityReport:
    return compare(reference, predictor, predictor.tokenizer.encode(texts))


@contextmanager
def _alone(path: Path, patience: float = 0) -> Iterator[Bundle]:
    """The bundle, which nobody else adds to meanwhile. `patience`: seconds to wait for who does."""
    lock = filelock.FileLock(path / ".lock", timeout=patience)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BundleError(f"{path}: another process is adding to it; try again when it is done") from None
    try:
        yield read_bundle(path)
    finally:
        lock.release()


def _add_engine(
    bundle: Bundle, engine: str, precision: str, gates: GateLayout | None, single: Single, guess: Route | None
) -> ParityReport | None:
    manifest, texts = bundle.manifest, read_golden(bundle).texts
    _clear(bundle)
    reference = OnnxReference(bundle)
    info = compile_engine(bundle.path, manifest.pieces, manifest.model, engine, precision, gates, single, guess)
    try:
        report = check(bundle, info, partial(_compare_golden, reference, texts))
        after = _with(manifest, note_parity(bundle.path, info, report))
        for replaced in {one.folder for one in manifest.engines} - {one.folder for one in after.engines}:
            os.utime(bundle.path / replaced)
        amend(bundle, after)
    except BaseException:
        shutil.rmtree(bundle.path / info.folder, ignore_errors=True)
        raise
    return report


def _clear(bundle: Bundle) -> None:
    """Removes engines that the manifest does not name, of a killed build or replaced, once nobody will be serving them
    any more."""
    named = {info.folder for info in bundle.manifest.engines}
    for folder in bundle.path.glob("engines/*"):
        served = time.time() - folder.stat().st_mtime < SERVED_SECONDS
        if not served and folder.relative_to(bundle.path).as_posix() not in named:
            shutil.rmtree(folder)


def _with(manifest: Manifest, added: EngineInfo) -> Manifest:
    """The manifest with the engine, in the place of the one that it replaces or at the end."""
    engines = {_identity(info): info for info in (*manifest.engines, added)}
    return replace(manifest, engines=tuple(engines.values()))


def _identity(info: EngineInfo) -> tuple[str, ...]:
    """What a bundle has one of: engines that are tied to a machine stand beside those for others."""
    tied = () if engine_class(info.engine).portable else (str(sorted(info.versions.items())), info.chip)
    return info.engine, info.precision, *tied
