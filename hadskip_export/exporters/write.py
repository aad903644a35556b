"""A run folder -> a bundle: pieces, engine, golden files, graph, parity, hashes, manifest, rename, in that order."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hadskip_export.exporters.compile import check, check_engine, compile_engine, note_parity, resolve_single
from hadskip_export.exporters.graph import make_graph
from hadskip_export.exporters.joining import join_layers
from hadskip_export.exporters.onnx import OPSET, export
from hadskip_export.exporters.pieces import Piece, cut, cut_full
from hadskip_export.modeling.checkpoint import load_classifier, load_gated
from hadskip_export.modeling.encoder import Classifier
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.budgets import budget_name, resolve_budget
from hadskip_export.runtime.bundle import (
    Bundle,
    GateLayout,
    HeldOut,
    Manifest,
    ModelInfo,
    RouterInfo,
    Tolerance,
    new_bundle,
    seal,
)
from hadskip_export.runtime.engines import Single
from hadskip_export.runtime.engines.ort import import_onnxruntime
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded, Text, Tokenizer
from hadskip_export.support.errors import BudgetError, BundleError
from hadskip_export.support.progress import track
from hadskip_export.trainers.run_folder import read_run, read_texts
from hadskip_export.trainers.summary import MARGIN_QUANTILES
from hadskip_export.verification import golden as golden_files
from hadskip_export.verification.parity import ParityReport, compare
from hadskip_export.verification.references import Reference
from hadskip_export.verification.torch_reference import TorchReference

TOKENIZER = "tokenizer/tokenizer.json"


@dataclass(frozen=True)
class Source:
    """What a bundle is made of.

    Args:
        model: the gated student, or a rival of one fixed route.
        full: the fine-tuned BERT, or None to leave it out of the bundle.
        tokenizer: a `tokenizer.json`.
        texts: real texts for the parity check; the bundle does not keep them.
    """

    model: GatedClassifier
    full: Classifier | None
    tokenizer: Path
    max_length: int
    threshold: float
    budget: float
    task: str
    metric: str
    texts: list[Text]
    held_out: HeldOut | None = None


def load_source(path: Path, budget: float | None, full: bool) -> Source:
    """Reads a finished run.

    Raises:
        BundleError: see `read_run`.
        BudgetError: the run has no checkpoint for `budget`.
    """
    run, recipe, summary = read_run(path)
    try:
        wanted = recipe["budget"] if budget is None else resolve_budget(budget, summary["layers"])
        folder = run.budget(wanted)
        if not folder.is_dir():
            have = ", ".join(budget_name(row["budget"]) for row in summary["budgets"])
            raise BudgetError(f"--budget {wanted:g}: {path} has checkpoints for {have}")
        held_out = json.loads((folder / "metrics.json").read_text())["held_out"]
        length, task, metric = summary["max_length"], summary["task"], summary["metric"]
        seen = _held_out(held_out)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: damaged run folder ({error}); train again into another folder") from error
    model, settings = load_gated(folder)
    full_model = load_classifier(run.stage1) if full else None
    Tokenizer(run.tokenizer, length)  # refuses a damaged one
    texts = read_texts(run.texts)
    return Source(
        model, full_model, run.tokenizer, length, settings.threshold, settings.budget, task, metric, texts, seen
    )


def _held_out(figures: dict[str, Any]) -> HeldOut:
    routes = figures["routes"]
    return HeldOut(
        routes["mean_layers"],
        tuple((tuple(route), share) for route, share in routes["commonest"]),
        tuple(routes["histogram"]),
        tuple(map(tuple, figures["margin_quantiles"])),
        MARGIN_QUANTILES,
    )


def write_bundle(
    source: Source,
    out: Path,
    engine: str = "ort",
    precision: str = "fp32",
    gates: GateLayout | None = None,
    golden: list[Text] | None = None,
    single: Single | None = None,
    graph: bool = False,
) -> ParityReport | None:
    """Writes a bundle and checks its engine against PyTorch, where this machine can run it; see `build`."""
    from hadskip_export import __version__

    check_engine(engine, precision, gates, single)
    if graph:
        import_onnxruntime()  # which checks it
    config, router = source.model.classifier.config, _router(source)
    how, guess = resolve_single(single, engine, precision, router, source.held_out)
    with new_bundle(out) as folder:
        (folder / TOKENIZER).parent.mkdir()
        shutil.copyfile(source.tokenizer, folder / TOKENIZER)
        tokenizer = Tokenizer(folder / TOKENIZER, source.max_length)
        model = ModelInfo(
            "bert", config.num_layers, config.hidden_size, config.vocab_size, source.max_length, config.labels
        )
        pieces = _write_pieces(source, model, folder)
        info = compile_engine(folder, pieces, model, engine, precision, gates, how, guess)
        manifest = Manifest(
            format=1,
            created_by=f"hadskip-export {__version__}",
            task=source.task,
            metric=source.metric,
            model=model,
            router=router,
            opset=OPSET,
            pieces=pieces,
            engines=(info,),
            held_out=source.held_out,
            tokenizer=TOKENIZER,
        )
        reference = TorchReference(source.model, source.full)
        texts = golden or golden_files.vocabulary_texts(tokenizer.vocabulary())
        golden_files.write_golden(folder, texts, tokenizer, reference, router.threshold)
        if graph:
            manifest = replace(manifest, graph=make_graph(Bundle(folder, manifest)))
        golden_inputs = tokenizer.encode(texts)
        real_inputs = tokenizer.encode(source.texts) or golden_inputs
        report = check(
            Bundle(folder, manifest), info, lambda p: _compare(reference, p, real_inputs, golden_inputs, precision)
        )
        seal(folder, replace(manifest, engines=(note_parity(folder, info, report),)))
    return report


def _router(source: Source) -> RouterInfo:
    route = source.model.fixed_route
    if route is None:
        return RouterInfo("gates", source.threshold, source.budget)
    return RouterInfo("static", 0.0, source.budget, route)


def _compare(
    reference: Reference, predictor: Predictor, real: list[Encoded], golden: list[Encoded], precision: str
) -> ParityReport:
    """On real texts. Below fp32 the tolerance is measured, and what is checked later are the golden ones: on both."""
    report = compare(reference, predictor, real)
    if precision == "fp32":
        return report
    tolerance = _wider(report.tolerance, compare(reference, predictor, golden).tolerance)
    return replace(report, tolerance=tolerance)


def _wider(one: Tolerance, other: Tolerance) -> Tolerance:
    margins = tuple(max(pair) for pair in zip(one.margins, other.margins, strict=True))
    return Tolerance(margins, max(one.logits, other.logits))


def _write_pieces(source: Source, model: ModelInfo, bundle: Path) -> dict[str, str]:
    """Exports every piece; returns piece -> file, relative to the bundle."""
    traced: dict[tuple[Any, ...], Any] = {}
    folder = bundle / "pieces"
    folder.mkdir()
    files = _export(cut(source.model), model.hidden_size, folder, traced, "export")
    if source.full is not None:
        if source.full.config != source.model.classifier.config:
            traced = {}  # heads, activation and eps are in a trace
        with tempfile.TemporaryDirectory(dir=bundle) as parts:
            full = _export(cut_full(source.full), model.hidden_size, Path(parts), traced, "export of full BERT")
            files["full"] = folder / "full.onnx"
            join_layers(full, model.inputs, files["full"])
    return {piece: file.relative_to(bundle).as_posix() for piece, file in files.items()}


def _export(
    pieces: Iterable[Piece], hidden_size: int, folder: Path, traced: dict[tuple[Any, ...], Any], label: str
) -> dict[str, Path]:
    """Writes a file for each module of the pieces; returns piece -> file."""
    found = list(pieces)
    files, written = {}, {}
    for piece in track(found, len(found), label):
        if piece.module not in written:
            written[piece.module] = folder / f"{piece.name}.onnx"
            export(piece, hidden_size, written[piece.module], traced)
        files[piece.name] = written[piece.module]
    return files
