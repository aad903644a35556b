"""The bundle: the one thing that passes from training to serving. Its manifest is typed, versioned and checked.

    BUNDLE/  manifest.json  manifest.sha256  golden/
             model/          config.json, tokenizer.json and every graph: pieces, full BERT, an engine's own
             model/weights/  every tensor once; the graphs point into these files
             engines/<engine>-<precision>-<cut>/  the report of its check, and files that no other program reads

Every file is listed with its size and SHA-256. `manifest.sha256` is the digest of the manifest's own bytes, and of the
one's before an engine was added: it guards against damage, not against somebody who can write both.
"""

import os
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath

from hadskip_export.data.metrics import METRICS
from hadskip_export.data.problems import MULTI, SINGLE
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.routes import is_route
from hadskip_export.runtime.engines import Cut, built_elsewhere, runs_onnx
from hadskip_export.runtime.graphs import MOST_FIELDS, Graph, read_graph
from hadskip_export.runtime.hub_cache import without_links
from hadskip_export.runtime.integrity import check_external_data, check_files, inside
from hadskip_export.runtime.manifest import (
    ALL_GATES,
    ENGINES_FOLDER,
    FORMAT,
    FULL,
    GRAPH_SUFFIX,
    MODEL_INPUTS,
    STATES,
    WHOLE,
    WHOLE_ALONE,
    EngineInfo,
    Manifest,
    ModelInfo,
    pieces_of,
)
from hadskip_export.runtime.policies import POLICIES
from hadskip_export.support.errors import BundleError, first_line
from hadskip_export.support.reading import read_at_most
from hadskip_export.support.words import counted, printable

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
MOST_MANIFEST, MOST_DIGESTS = 4 << 20, 1024  # bytes; a manifest is some kilobytes, and there are two digests at most
MOST_SHOWN = 200  # characters of a place that cannot be
MOST_SIZE = 2**31 - 1  # of anything that a model has in rows


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked. `digest`: the SHA-256 of the manifest's bytes as they were read."""

    path: Path
    manifest: Manifest
    digest: str = ""

    def engine(self, name: str | None = None, precision: str | None = None, cut: Cut | None = None) -> EngineInfo:
        """The first engine that is as asked; where it was built for several machines the one for this one, if there is
        one.

        Args:
            name: `ort`, or with its precision `ort-fp32`, or with its cut `ort-fp32-whole`.

        Raises:
            BundleError: the bundle has no such engine.
        """
        found = [
            info
            for info in self.manifest.engines
            if name in (None, info.engine, f"{info.engine}-{info.precision}", info.name)
            and precision in (None, info.precision)
            and cut in (None, info.cut)
        ]
        if found:
            alike = [info for info in found if info.name == found[0].name]
            return next((one for one in alike if not built_elsewhere(one.engine, one.versions, one.chip)), alike[0])
        asked = {"engine": name, "precision": precision, "cut": cut}
        wanted = " ".join(f"{option}={value!r}" for option, value in asked.items() if value is not None)
        have = ", ".join(info.name for info in self.manifest.engines)
        raise BundleError(
            f"{self.path}: has no engine with {wanted}, only {have}; hadskip-export build {self.path} adds one"
        )

    def file(self, relative: str) -> Path:
        return self.path / relative


def read_bundle(path: str | Path) -> Bundle:
    """Opens a bundle and checks all of it before anything is used. It may come from a stranger: how much is read, and
    how long that takes, is bounded whatever it says.

    Raises:
        BundleError: not a bundle; a format this version does not know; a missing, truncated or altered file; a path,
            in the manifest or inside an ONNX file, that leaves the bundle; a graph that is not that of its piece.
    """
    if not isinstance(path, str | PathLike):
        raise BundleError(f"expected the folder of a bundle, got {path!r}")
    if printable(str(path)) != str(path):
        raise BundleError(f"{printable(str(path))}: a place whose name is not UTF-8, which no engine reads; rename it")
    try:
        os.stat(path)
    except FileNotFoundError:
        pass  # which is told below
    except (OSError, ValueError) as error:  # too long, a null byte
        shown = printable(str(path))[:MOST_SHOWN]
        raise BundleError(f"{shown}: cannot be opened ({getattr(error, 'strerror', error)})") from error
    folder = without_links(Path(path), MANIFEST)
    manifest, digest = _read_manifest(folder)
    check_model(folder, manifest)
    check_files(folder, manifest.files)
    used = {manifest.tokenizer, manifest.weights, *manifest.pieces.values()}
    used.update(*(engine.files.values() for engine in manifest.engines))
    for name in used:
        inside(folder, name)
        if name not in manifest.files:
            raise BundleError(f"{folder / name}: used by the manifest but not listed among its files")
    _check_graphs(folder, manifest)
    return Bundle(folder, manifest, digest)


def graphs_of(manifest: Manifest) -> set[str]:
    """The files that something reads as ONNX."""
    files = {*manifest.pieces.values(), *(name for name in manifest.files if name.endswith(GRAPH_SUFFIX))}
    return files.union(*(engine.files.values() for engine in manifest.engines if runs_onnx(engine.engine)))


def _check_graphs(folder: Path, manifest: Manifest) -> None:
    graphs, left = {}, MOST_FIELDS
    for name in sorted(graphs_of(manifest)):
        if not name.endswith(GRAPH_SUFFIX):
            raise BundleError(f"{folder / name}: a graph whose name does not end in {GRAPH_SUFFIX}; build it again")
        graphs[name] = graph = read_graph(folder / name, left)
        left -= graph.fields
        check_external_data(folder, name, graph.locations, manifest.files)
    for files in (manifest.pieces, *(info.files for info in manifest.engines if runs_onnx(info.engine))):
        for piece, name in files.items():
            _check_graph(folder / name, piece, graphs[name], manifest)


def _check_graph(file: Path, piece: str, graph: Graph, manifest: Manifest) -> None:
    """Whether a graph takes and gives what its piece does. (Layers all do the same, and so do gates, and exits.)"""
    model = manifest.model
    whole = (*model.inputs, "gate_thresholds", "max_layers"), ((2, 2),)
    known: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
        "embeddings": (model.embedding_inputs, ((3,),)),
        "layer": (STATES, ((3,), (3, 2))),  # with margins, where it answers for the gates after it, or with its exit's
        "gate": (STATES, ((1,),)),
        "exit": (manifest.router.exit_inputs, ((2,),)),
        ALL_GATES: (STATES, ((2,),)),
        "head": (model.head_inputs, ((2,),)),
        FULL: (model.inputs, ((2,),)),
        WHOLE: whole,
        WHOLE_ALONE: whole,
    }
    kind = re.sub(r"_\d+$", "", piece)
    if kind in known and (graph.inputs != known[kind][0] or graph.output_axes not in known[kind][1]):
        raise BundleError(
            f"{file}: takes {', '.join(graph.inputs)} and gives arrays of {graph.output_axes} axes, which is not what"
            f" {piece} does; build the bundle again"
        )


def _check_problem(model: ModelInfo, metric: str, file: Path) -> None:
    labels, thresholds = model.labels, model.label_thresholds
    counts = {SINGLE: len(labels) > 1, MULTI: len(labels) > 0}
    if len(set(labels)) < len(labels) or not counts.get(model.problem_type, len(labels) == 1):
        raise BundleError(
            f"{file}: {counted(len(labels), 'label')} that {model.problem_type} cannot have; build it again"
        )
    if metric not in METRICS or model.problem_type not in METRICS[metric].problems:
        raise BundleError(f"{file}: the metric {metric!r} is none of {model.problem_type}; build it again")
    wanted = len(labels) if model.problem_type == MULTI else 0
    if len(thresholds) != wanted or not all(0 < threshold < 1 for threshold in thresholds):
        raise BundleError(f"{file}: label_thresholds {list(thresholds)}, expected {wanted} of them between 0 and 1")


def check_model(folder: Path, manifest: Manifest) -> None:
    """
    Raises:
        BundleError: sizes that no model has, a route that it cannot take, points that do not fit, or an engine without
            a piece that the runtime needs.
    """
    model, router, file = manifest.model, manifest.router, folder / MANIFEST
    if model.layers < 1 or model.max_length < 3 or not model.labels or not manifest.engines:
        raise BundleError(f"{file}: needs a layer, room for three tokens, a label and an engine")
    _check_problem(model, manifest.metric, file)
    sizes = (model.hidden_size, model.vocab_size, model.max_length)
    if not all(1 <= size <= MOST_SIZE for size in sizes) or not 0 <= model.type_vocab_size <= MOST_SIZE:
        raise BundleError(f"{file}: sizes {(*sizes, model.type_vocab_size)}, expected 1 to {MOST_SIZE}; build it again")
    if not {*MODEL_INPUTS[:2]} <= {*model.inputs} <= {*MODEL_INPUTS} or len(set(model.inputs)) < len(model.inputs):
        raise BundleError(f"{file}: inputs {', '.join(model.inputs)}, expected of {', '.join(MODEL_INPUTS)}")
    for engine in manifest.engines:  # first of all that is done for each layer: so many are there
        if len(engine.tolerance.margins) != model.layers:
            raise BundleError(f"{file}: {engine.name} needs a tolerance for each gate")
    if router.kind not in POLICIES:
        raise BundleError(f"{file}: the router {router.kind!r} is not known; there are {', '.join(POLICIES)}")
    if (router.kind == "static") == router.decides:
        raise BundleError(f"{file}: a static router has a route, and no other has one; build it again")
    if not router.decides and not is_route(router.route, model.layers):
        raise BundleError(
            f"{file}: the route is {list(router.route or ())}, expected layers from 1 to {model.layers} in"
            " ascending order; build it again"
        )
    _check_exits(file, manifest)
    _check_points(file, manifest)
    for piece in pieces_of("gates", manifest):
        if piece not in manifest.pieces:
            raise BundleError(f"{file}: the ONNX pieces lack {piece}")
    for engine in manifest.engines:
        for piece in (
            *pieces_of("gates" if engine.cut == "whole" else engine.cut, manifest),
            *pieces_of(engine.cut, manifest),
        ):
            if piece not in engine.files:
                raise BundleError(f"{file}: {engine.name} has no {piece}")
        if PurePosixPath(engine.folder).parts[:1] != (ENGINES_FOLDER,):
            raise BundleError(f"{file}: {engine.name} has the folder {engine.folder!r}, outside {ENGINES_FOLDER}/")
        inside(folder, engine.folder)


def _check_exits(file: Path, manifest: Manifest) -> None:
    router = manifest.router
    if not router.has_exits:
        if router.criterion is not None or router.exit_inputs:
            raise BundleError(f"{file}: a criterion for exits that the router {router.kind!r} has not; build it again")
        return
    if router.criterion not in CRITERIA:
        raise BundleError(
            f"{file}: exits that are left by {router.criterion!r}; there are {', '.join(CRITERIA)}; upgrade"
            " hadskip-export"
        )
    if router.exit_inputs not in (STATES[:1], STATES):
        raise BundleError(f"{file}: exits that take {', '.join(router.exit_inputs)}; build it again")
    if manifest.model.problem_type != SINGLE and not router.leaves_by.of_gate:
        raise BundleError(f"{file}: exits by {router.criterion} of a {manifest.model.problem_type}; build it again")
    if router.jumps_to_exits and router.leaves_by.of_gate:
        raise BundleError(f"{file}: gates before exits that have gates of their own; build it again")
    for engine in manifest.engines:
        if engine.cut not in router.cuts:
            raise BundleError(f"{file}: {engine.name} of a model with exits, which are run layer by layer")


def _check_points(file: Path, manifest: Manifest) -> None:
    budgets = [point.budget for point in manifest.points]
    if manifest.default_budget not in budgets or budgets != sorted(set(budgets)):
        raise BundleError(f"{file}: needs operating points in ascending order, the default one among them")
    if not all(0 < budget <= manifest.model.layers for budget in budgets):
        raise BundleError(f"{file}: operating points of budgets that {manifest.model.layers} layers cannot have")
    gates = manifest.model.layers if manifest.router.decides else 0
    if any(len(point.thresholds) != gates for point in manifest.points):
        raise BundleError(f"{file}: an operating point needs a threshold for each of {gates} layers; build it again")
    numbers = manifest.model.layers + 1
    shares = [point.layers_run for point in manifest.points if point.layers_run]
    if any(len(one) != numbers or not all(0 <= share <= 1 for share in one) for one in shares):
        raise BundleError(f"{file}: an operating point needs a share for each of 0 to {numbers - 1} layers run")
    if manifest.router.has_exits and any(len(set(point.thresholds)) > 1 for point in manifest.points):
        raise BundleError(f"{file}: an operating point of exits with several thresholds, not one; build it again")


def read_manifest(folder: Path) -> Manifest:
    """What a bundle says of itself, which nothing has been held against yet; see `read_bundle`.

    Raises:
        BundleError: no manifest, another format, or one that its digest does not fit.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """And its digest."""
    import hashlib

    import msgspec  # it and hashlib are imported where they are used: a tenth of the time to import this package

    file = folder / MANIFEST
    try:
        content = read_at_most(file, MOST_MANIFEST)
        digests = read_at_most(folder / DIGEST, MOST_DIGESTS).split()
    except OSError as error:
        raise BundleError(f"{folder}: not a bundle ({_what_it_is(folder, error)})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest.encode() not in digests:
        raise BundleError(f"{file}: does not match {DIGEST}; it was edited or damaged, copy or build the bundle again")
    try:
        version = msgspec.json.decode(content, type=dict)["format"]
        if version == 1:
            raise BundleError(
                f"{file}: format 1, of a version before operating points; make it anew from its run with"
                " hadskip-export build RUN --out BUNDLE"
            )
        if version != FORMAT:
            raise BundleError(f"{file}: format {version}, this version reads {FORMAT}; upgrade hadskip-export")
        return msgspec.json.decode(content, type=Manifest), digest
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"{file}: not a manifest ({first_line(error)})") from error


def _what_it_is(folder: Path, error: OSError) -> str:
    """Instead of a bundle, and what to do with it."""
    if not folder.exists():
        return "no such folder; hadskip-export build RUN --out BUNDLE makes one"
    if not folder.is_dir():
        return "a file; give the whole folder that hadskip-export build wrote"
    if isinstance(error, PermissionError):
        return f"{Path(error.filename).name}: {error.strerror}"
    if (folder.parent / MANIFEST).is_file():
        return f"a part of the bundle {folder.parent}; give that"
    if (folder / "recipe.json").is_file():
        return f"a run; hadskip-export build {folder} --out BUNDLE makes one of it"
    if (folder / "config.json").is_file():
        return (
            f"a model folder; teach it to skip layers with hadskip-export train --model {folder} --out RUN, then"
            " hadskip-export build RUN --out BUNDLE"
        )
    if not (folder / MANIFEST).exists() and not (folder / DIGEST).exists():
        what = "a folder of other files" if any(folder.iterdir()) else "an empty folder"
        return f"{what}, without {MANIFEST}; hadskip-export build RUN --out BUNDLE makes a bundle"
    return f"{Path(error.filename).name}: {error.strerror}; copy the whole bundle again"
