"""`build`: a run folder -> a bundle, or a bundle -> the same with one engine more."""

from pathlib import Path

from hadskip_export.exporters.amend import add_engine, add_graph
from hadskip_export.exporters.compile import check_engine
from hadskip_export.runtime.bundle import MANIFEST, GateLayout
from hadskip_export.runtime.engines import Single
from hadskip_export.support.errors import BundleError, optional_import
from hadskip_export.verification.golden import read_texts
from hadskip_export.verification.parity import ParityReport


def build(
    source: str | Path,
    *,
    out: str | Path | None = None,
    engine: str | None = None,
    precision: str = "fp32",
    budget: float | None = None,
    gates: GateLayout | None = None,
    golden: str | Path | None = None,
    full: bool = True,
    graph: bool = False,
    single: Single | None = None,
) -> ParityReport | None:
    """Builds a bundle from a run folder, or adds an engine or the graph to a bundle, which needs no torch.

    Args:
        source: the run folder, or the bundle to add to.
        out: the bundle to write; not of a bundle.
        engine: `ort` if left out; of a bundle there is none to add then.
        budget: which of the run's budgets; the last if left out.
        gates: their layout, see `GateLayout`; the engine's fastest if left out. A fixed route has no gates.
        golden: a file of texts, one a line, to take as golden inputs instead of random words.
        full: carry the fine-tuned BERT too.
        graph: carry the whole model as one ONNX file too, for programs without Python.
        single: how the engine runs an input that comes alone, see `Single`; the engine's own way if left out.
            docs/performance.md says what it gains.

    Returns:
        The parity report, against PyTorch or, of a bundle, against its ONNX pieces. If it did not pass, the engine is
        there and marked, and `Predictor.load` refuses it. None where only the graph was added, or an engine that this
        machine builds and cannot run: its parity stays unverified.

    Raises:
        BundleError: not a finished run, no such budget in it, or `out` exists; or a bundle with what only a run takes.
        EngineError: an engine or precision that is not to be had.
    """
    path = Path(source)
    if (path / MANIFEST).is_file():
        for option, given in (("--out", out), ("--budget", budget), ("--golden", golden), ("--no-full", not full)):
            if given:
                raise BundleError(f"{option}: {path} is a bundle, to which an engine is added; leave it out")
        if engine is None and not graph:
            raise BundleError(f"--engine: {path} is a bundle; say what to add, an engine or --graph")
        if engine is None and (single is not None or gates is not None):
            option = "--single" if gates is None else "--gates"
            raise BundleError(f"{option}: {path} is a bundle; say with --engine which engine to add like this")
        if engine is not None:  # what is not to be had is refused before the graph is made
            check_engine(engine, precision, gates, single)
        if graph:
            add_graph(path)
        return None if engine is None else add_engine(path, engine, precision, gates, single)
    if out is None:
        raise BundleError(f"--out: {path} is to become a bundle; say where to write it")
    optional_import("torch", "train")
    from hadskip_export.exporters.write import load_source, write_bundle

    texts = read_texts(Path(golden)) if golden is not None else None
    run = load_source(path, budget, full)
    return write_bundle(run, Path(out), engine or "ort", precision, gates, texts, single, graph)
