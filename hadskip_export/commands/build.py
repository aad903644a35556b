"""`build`: a run folder -> a bundle, or a bundle -> the same with one engine more."""

from pathlib import Path

from hadskip_export.exporters.amend import add_engine, sign_as_it_is
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.sign import Signer
from hadskip_export.runtime.bundle import MANIFEST, read_bundle
from hadskip_export.runtime.engines import Cut
from hadskip_export.support.errors import BundleError, optional_import
from hadskip_export.verification.golden import read_texts
from hadskip_export.verification.parity import ParityReport


def build(
    source: str | Path,
    *,
    out: str | Path | None = None,
    engine: str | None = None,
    precision: str = "fp32",
    cut: Cut | None = None,
    budget: float | None = None,
    golden: str | Path | None = None,
    full: bool = True,
    force: bool = False,
    sign: str | Path | None = None,
) -> ParityReport | None:
    """Builds a bundle from a run folder, or adds an engine to a bundle, which needs no torch.

    Args:
        source: the run folder, or the bundle to add to.
        out: the bundle to write; not of a bundle.
        engine: `ort` if left out; of a bundle there is none to add then.
        cut: how finely the model is cut, `gates`, `layers` or `whole`; the engine's fastest if left out.
        budget: which of the run's budgets; the last if left out.
        golden: a file of texts, one a line, to take as golden inputs instead of random words.
        full: carry the fine-tuned BERT too.
        force: replace a bundle that `out` is.
        sign: a private key (PEM, elliptic curve) to sign the bundle with, so that `Predictor.load(verify=...)` refuses
            what somebody else changed. Of a bundle without an `engine`, all that is done.

    Returns:
        The parity report, against PyTorch or, of a bundle, against its ONNX pieces. If it did not pass, the engine is
        there and marked, and `Predictor.load` refuses it. None where this machine builds the engine and cannot run it:
        its parity stays unverified.

    Raises:
        BundleError: not a finished run, no such budget in it, or `out` exists; or a bundle with what only a run takes;
            `sign` is no key.
        EngineError: an engine, precision or cut that is not to be had; with `sign`, model-signing is not installed.
    """
    path = Path(source)
    signer = None if sign is None else Signer(sign)
    if (path / MANIFEST).is_file():
        of_runs = {"--out": out, "--budget": budget, "--golden": golden, "--no-full": not full, "--force": force}
        for option, given in of_runs.items():
            if given:
                raise BundleError(f"{option}: {path} is a bundle, to which an engine is added; leave it out")
        if engine is None and signer is not None:
            if cut is not None or precision != "fp32":
                raise BundleError(
                    f"--precision, --cut: of an engine to add to {path}; say which --engine, or leave them"
                )
            sign_as_it_is(path, signer)
            return None
        if engine is None:
            raise BundleError(f"--engine: {path} is a bundle; say which engine to add")
        return add_engine(path, EnginePlan.of(engine, precision, cut, read_bundle(path).manifest.router), signer)
    if out is None:
        raise BundleError(f"--out: {path} is to become a bundle; say where to write it")
    optional_import("torch", "train")
    from hadskip_export.exporters.write import load_source, write_bundle

    texts = read_texts(Path(golden)) if golden is not None else None
    plan = EnginePlan.of(engine or "ort", precision, cut)
    made_of = load_source(path, budget, full)
    plan = EnginePlan.of(plan.engine, precision, cut, made_of.router)
    return write_bundle(made_of, Path(out), plan, texts, force=force, signer=signer)
