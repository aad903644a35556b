"""What a finished bundle can be given: an engine more, operating points, or a signature. No torch; whoever serves the
bundle meanwhile goes on, for a day with an engine that was replaced."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from hadskip_export.data.text import Text
from hadskip_export.exporters import engine as engines
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.seal import amend, clear, undo, undone_if_failed
from hadskip_export.exporters.sign import LOCK, Signer
from hadskip_export.routing.points import Point, with_point
from hadskip_export.runtime.bundle import Bundle, read_bundle
from hadskip_export.runtime.engines import engine_class
from hadskip_export.runtime.manifest import EngineInfo, Manifest
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import named
from hadskip_export.support.locks import alone
from hadskip_export.verification.golden import read_golden
from hadskip_export.verification.parity import ParityReport, compare
from hadskip_export.verification.references import OnnxReference, Reference

SETTLING_SECONDS = 600  # to wait for somebody who checks the same engine, several machines share a bundle perhaps


def add_engine(path: Path, plan: EnginePlan, signer: Signer | None = None) -> ParityReport | None:
    """Adds an engine, or makes it anew; see `build`."""
    with _alone(path) as bundle:
        clear(bundle)
        check = partial(_compare_golden, OnnxReference(bundle), read_golden(bundle).texts)
        with undone_if_failed(bundle):
            info, report = engines.verify(bundle, engines.write(bundle, plan), check)
            amend(bundle, _with(bundle.manifest, info), signer)
    return report


def add_points(path: Path, points: Sequence[Point], default: float | None = None) -> None:
    """Adds operating points, each in the place of that of its budget.

    Args:
        default: the budget of the one that is the default from now on; the same as before if left out.

    Raises:
        BundleError: another process is adding to the bundle.
    """
    with _alone(path) as bundle:
        after = bundle.manifest.points
        for point in points:
            after = with_point(after, point)
        budget = bundle.manifest.default_budget if default is None else default
        amend(bundle, replace(bundle.manifest, points=after, default_budget=budget))


def sign_as_it_is(path: Path, signer: Signer) -> None:
    """Signs a bundle, or signs it again."""
    with _alone(path) as bundle:
        signer.sign(bundle.path)


def settled(bundle: Bundle, name: str) -> Bundle:
    """The bundle, in which the engine of that name, if it was built where it cannot run, has been checked on this
    machine, where it can, as `add_engine` would have: parity and, below fp32, the measured tolerance are written down.

    Raises:
        BundleError: the bundle cannot be written to.
    """
    path, info = bundle.path, bundle.engine(name)
    if not _is_unsettled(info):
        return bundle
    if not os.access(path, os.W_OK):
        raise BundleError(
            f"{path}: {info.name} was never checked, and what a check finds is to be written there; make it writable"
            " for this once"
        )
    with _alone(path, SETTLING_SECONDS) as bundle:
        unsettled = bundle.engine(name)
        if _is_unsettled(unsettled):  # nobody else was faster
            check = partial(_compare_golden, OnnxReference(bundle), read_golden(bundle).texts)
            with undone_if_failed(bundle):
                found, _ = engines.verify(bundle, unsettled, check)
                amend(bundle, _with(bundle.manifest, found))
    return read_bundle(path)


def _is_unsettled(info: EngineInfo) -> bool:
    return info.parity == "unverified" and engine_class(info.engine).why_not_here() is None


def _compare_golden(reference: Reference, texts: Sequence[Text], predictor: Predictor) -> ParityReport:
    return compare(reference, predictor, predictor.tokenizer.encode(texts))


@contextmanager
def _alone(path: Path, patience: float = 0) -> Iterator[Bundle]:
    """The bundle, which nobody else adds to meanwhile. `patience`: seconds to wait for who does."""
    taken = BundleError(f"{path}: another process is adding to it; try again when it is done")
    with alone(path / LOCK, taken, patience), named(path):
        undo(path)
        yield read_bundle(path)


def _with(manifest: Manifest, added: EngineInfo) -> Manifest:
    """The manifest with the engine, in the place of the one that it replaces or at the end."""
    engines = {_identity(info): info for info in (*manifest.engines, added)}
    return replace(manifest, engines=tuple(engines.values()))


def _identity(info: EngineInfo) -> tuple[str, ...]:
    """What a bundle has one of: engines that are tied to a machine stand beside those for others."""
    tied = () if engine_class(info.engine).portable else (str(sorted(info.versions.items())), info.chip)
    return info.engine, info.precision, info.cut, *tied
