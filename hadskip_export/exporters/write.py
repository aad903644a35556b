"""A run folder -> a bundle: weights, pieces, golden inputs, then an engine planned, written, verified and sealed."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from hadskip_export.data.metrics import AGREEMENT, USUAL
from hadskip_export.data.problems import Problem
from hadskip_export.data.runs import read_run
from hadskip_export.data.text import TOKENIZER_CONFIG, Text
from hadskip_export.exporters import engine
from hadskip_export.exporters.assemble import full
from hadskip_export.exporters.onnx import OPSET, bound, template_of, tensors_as_stored
from hadskip_export.exporters.pieces import cut, cut_full, exit_inputs
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.seal import new_bundle, seal
from hadskip_export.exporters.sign import Signer
from hadskip_export.exporters.weights import place_graph, read_places, write_tensors
from hadskip_export.modeling.checkpoint import hugging_face_config, load_classifier, load_student
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.exits import ExitClassifier, Student
from hadskip_export.routing.points import Point
from hadskip_export.runtime.bundle import Bundle
from hadskip_export.runtime.manifest import FORMAT, FULL, MODEL, MODEL_INPUTS, SEGMENTS, Manifest, ModelInfo, RouterInfo
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Encoded, Tokenizer
from hadskip_export.support.digests import check_digests
from hadskip_export.support.progress import track
from hadskip_export.verification import golden as golden_files
from hadskip_export.verification.original import check_same_as_original
from hadskip_export.verification.parity import ParityReport, compare, wider
from hadskip_export.verification.references import Reference
from hadskip_export.verification.torch_reference import TorchReference

FP32 = "fp32"


@dataclass(frozen=True)
class Source:
    """What a bundle is made of.

    Args:
        model: the gated student, or a rival of one fixed route or with exits.
        full: the fine-tuned BERT, or None to leave it out of the bundle.
        tokenizer: a `tokenizer.json`.
        points: the student's operating points, by ascending budget.
        budget: that of the default one.
        texts: real texts for the parity check; the bundle does not keep them.
        label_thresholds: see `Problem`; its own if left out.
    """

    model: Student
    full: Classifier | None
    tokenizer: Path
    max_length: int
    points: tuple[Point, ...]
    budget: float
    task: str
    metric: str
    texts: list[Text]
    label_thresholds: tuple[float, ...] = ()

    @property
    def config(self) -> EncoderConfig:
        return self.model.classifier.config

    @property
    def router(self) -> RouterInfo:
        model = self.model
        if isinstance(model, ExitClassifier):
            kind = "gated-exits" if model.gates else "exits"
            return RouterInfo(kind, criterion=model.criterion, exit_inputs=exit_inputs(model))
        if model.fixed_route is not None:
            return RouterInfo("static", model.fixed_route)
        return RouterInfo("upfront" if model.upfront else "gates")


def load_source(path: Path, budget: float | None, full: bool) -> Source:
    """Reads a finished run. Its fine-tuned BERT, from text to label, is held against `transformers`' on the way.

    Raises:
        BundleError: see `read_run`, `check_same_as_original`; a damaged checkpoint.
        BudgetError: see `Run.checkpoint`.
    """
    run = read_run(path)
    found, tokenizer = run.checkpoint(budget), run.paths.tokenizer
    for folder in (run.paths.stage1, tokenizer.parent):
        check_digests(folder)
    model, _ = load_student(found.folder)
    fine_tuned, texts = load_classifier(run.paths.stage1), run.texts()
    config = fine_tuned.config
    to_serve = Tokenizer(tokenizer, run.max_length, config.vocab_size, config.type_vocab_size)
    check_same_as_original(run.paths.stage1, to_serve, fine_tuned, texts, fine_tuned=True)
    labelled = run.metric != AGREEMENT  # the bundle's metric is then for whoever has labels later
    thresholds = 0 if model.fixed_route else len(model.classifier.layers)
    points = tuple(
        Point(
            budget=point.budget,
            thresholds=(point.threshold,) * thresholds,
            data=point.threshold_on,
            mean_layers=point.mean_layers,
            routes=point.routes,
            layers_run=point.layers_run,
            metric=point.metric if labelled else None,
            full_metric=run.teacher_metric if labelled else None,
        )
        for point in run.points(found)
    )
    return Source(
        model=model,
        full=fine_tuned if full else None,
        tokenizer=tokenizer,
        max_length=run.max_length,
        points=points,
        budget=found.budget,
        task=run.task,
        metric=run.metric if labelled else USUAL[config.problem_type],
        texts=texts,
        label_thresholds=run.label_thresholds,
    )


def write_bundle(
    source: Source,
    out: Path,
    plan: EnginePlan | None = None,
    golden: list[Text] | None = None,
    *,
    force: bool = False,
    signer: Signer | None = None,
) -> ParityReport | None:
    """Writes a bundle and checks its engine against PyTorch, where this machine can run it; see `build`."""
    plan = plan or EnginePlan.of(router=source.router)
    with new_bundle(out, force) as folder:
        bundle = Bundle(folder, write_model(source, folder))
        reference = TorchReference(source.model, source.full)
        tokenizer = Tokenizer(
            bundle.file(bundle.manifest.tokenizer), source.max_length, source.config.vocab_size,
            source.config.type_vocab_size,
        )  # fmt: skip
        made_up = golden_files.vocabulary_texts(tokenizer.vocabulary())
        texts = golden or [text for text in made_up if tokenizer.takes(text)]
        golden_files.write_golden(bundle, texts, tokenizer, reference)
        golden_inputs = tokenizer.encode(texts)
        real_inputs = tokenizer.encode(source.texts) or golden_inputs

        def check(predictor: Predictor) -> ParityReport:
            return _compare(reference, predictor, real_inputs, golden_inputs)

        info, report = engine.verify(bundle, engine.write(bundle, plan), check)
        seal(folder, replace(bundle.manifest, engines=(info,)))
        if signer is not None:
            signer.sign(folder)
    return report


def write_model(source: Source, folder: Path) -> Manifest:
    """Writes what every engine is made from, tensors and fp32 graphs, and what other programs need beside them; returns
    the manifest as far as it is known."""
    from hadskip_export import __version__

    config = source.config
    problem = Problem(config.problem_type, config.labels, source.label_thresholds)
    inputs = MODEL_INPUTS if config.has_segments else tuple(name for name in MODEL_INPUTS if name != SEGMENTS)
    model = ModelInfo(
        config.family, config.num_layers, config.hidden_size, config.vocab_size, source.max_length, config.labels,
        inputs, config.type_vocab_size, config.pooling, problem.type, problem.thresholds,
    )  # fmt: skip
    (folder / MODEL).mkdir()
    (folder / MODEL / "config.json").write_text(json.dumps(hugging_face_config(config), indent=2) + "\n")
    shutil.copyfile(source.tokenizer, folder / MODEL / source.tokenizer.name)
    about = source.tokenizer.with_name(TOKENIZER_CONFIG)
    if about.is_file():
        settings = json.loads(about.read_text()) | {"model_max_length": source.max_length}
        (folder / MODEL / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    weights, pieces = _write_pieces(source, model, folder)
    return Manifest(
        format=FORMAT,
        created_by=f"hadskip-export {__version__}",
        task=source.task,
        metric=source.metric,
        model=model,
        router=source.router,
        points=source.points,
        default_budget=source.budget,
        opset=OPSET,
        pieces=pieces,
        weights=weights,
        engines=(),
    )


def _write_pieces(source: Source, model: ModelInfo, folder: Path) -> tuple[str, dict[str, str]]:
    """Writes every tensor, then every graph; returns the file of weights, and piece -> file, relative to the bundle."""
    pieces = list(cut(source.model))
    parts = [] if source.full is None else list(cut_full(source.full))
    configs = [source.config] * len(pieces) + [source.full.config if source.full else source.config] * len(parts)
    every = [*pieces, *parts]
    templates = [
        template_of(piece, config) for piece, config in track(zip(every, configs, strict=True), len(every), "export")
    ]
    paired = list(zip(every, templates, strict=True))
    transposed = {name.split(".")[-2] for template in templates for name in template.transposed}
    weights = write_tensors(folder, FP32, tensors_as_stored(paired), _about(source.config, transposed))
    stored = read_places(folder, weights)
    graphs = [bound(piece, template, stored) for piece, template in paired]
    files = {piece.name: place_graph(folder, graph, piece.name) for piece, graph in zip(pieces, graphs, strict=False)}
    if parts:
        of_full = {piece.name: graph for piece, graph in zip(parts, graphs[len(pieces) :], strict=True)}
        files[FULL] = place_graph(folder, full(of_full, model.inputs), FULL)
    return weights, files


def _about(config: EncoderConfig, transposed: set[str]) -> dict[str, str]:
    """What the tensors do not tell, for an engine that has the layers' code itself. `transposed`: linear maps whose
    weights are [in, out]."""
    return {
        "num_layers": str(config.num_layers),
        "num_heads": str(config.num_heads),
        "eps": repr(config.layer_norm_eps),
        "activation": config.activation,
        "family": config.family,
        "segments": "yes" if config.has_segments else "no",
        "transposed": " ".join(sorted(transposed)),
    }


def _compare(reference: Reference, predictor: Predictor, real: list[Encoded], golden: list[Encoded]) -> ParityReport:
    """On real texts. Below fp32 the tolerance is measured, and what is checked later are the golden ones: on both."""
    report = compare(reference, predictor, real)
    if predictor.engine_info.precision == FP32:
        return report
    return replace(report, tolerance=wider(report.tolerance, compare(reference, predictor, golden).tolerance))
