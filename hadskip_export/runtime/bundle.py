"""The bundle: the one thing that passes from training to serving. Its manifest is typed, versioned and checked.

    BUNDLE/  manifest.json  manifest.sha256  tokenizer/  pieces/  engines/<engine>-<precision>/  golden/

Every file is listed with its size and SHA-256. `manifest.sha256` is the digest of the manifest's own bytes, and of the
one's before an engine was added: it guards against damage, not against somebody who can write both.
"""

import os
import re
import shutil
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from hadskip_export.routing.routes import Route, is_route
from hadskip_export.runtime.engines import Batches, GateLayout, Single, built_elsewhere, runs_onnx
from hadskip_export.runtime.onnx_files import external_data_files
from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import replaced

FORMAT = 1
GRAPH = "graph"
MANIFEST, DIGEST = "manifest.json", "manifest.sha256"


def layer_name(index: int) -> str:
    """The piece of layer `index` (from 0): `layer_01`, for whoever reads a file name counts from 1."""
    return f"layer_{index + 1:02d}"


def gate_name(index: int) -> str:
    """The piece of the gate before layer `index` (from 0): `gate_01`."""
    return f"gate_{index + 1:02d}"


def gate_names(layout: str, num_layers: int) -> list[str]:
    """The pieces of this layout that are asked for margins: one per layer, one for all, or none."""
    separate = [gate_name(index) for index in range(num_layers)]
    return {"separate": separate, "lookahead": ["gates"], "fused": ["gates"]}.get(layout, [])


@dataclass(frozen=True)
class ModelInfo:
    """Sizes and names of the model. `inputs`: what embeddings and the full model take, in order."""

    family: str
    layers: int
    hidden_size: int
    vocab_size: int
    max_length: int
    labels: tuple[str, ...]
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class RouterInfo:
    """How rows are routed.

    Args:
        kind: `gates` ask each input; `static`: every input takes `route`, and there are no gates.
        threshold: of the gates' margins, in logits.
        budget: mean layers asked for.
        route: the layers that run, numbered from 1, ascending; only of a static router.
    """

    kind: Literal["gates", "static"]
    threshold: float
    budget: float
    route: Route | None = None


@dataclass(frozen=True)
class HeldOut:
    """What training saw on its held-out slice, for `inspect` and for watching a deployment drift."""

    mean_layers: float
    commonest_routes: tuple[tuple[tuple[int, ...], float], ...]  # (layers from 1, share)
    histogram: tuple[float, ...]  # share of inputs that ran 0, 1, ..., L layers
    margin_quantiles: tuple[tuple[float, ...], ...]  # per gate, at `quantiles`
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from the reference.

    Args:
        margins: per gate, in logits; a margin closer than this to the threshold may fall on either side of it.
        logits: largest difference of a logit where routes agree.
    """

    margins: tuple[float, ...]
    logits: float


@dataclass(frozen=True)
class EngineInfo:
    """One engine of the bundle.

    Args:
        gates: how the router's gates are laid out; `none` for a static one.
        versions, chip: what it was built with and on.
        folder: what it has of its own, relative to the bundle: the report of its check, and files, if it needs any.
        files: piece -> file, relative to the bundle.
        tolerance: what its parity check allowed; a machine where it is farther off computes something else.
        single: how an input that comes alone is run; by the piece of this name, unless by the chain.
        guess: the route that its piece `guess` runs; None where it has no such piece.
        batches: what runs a batch where single inputs have a graph.
    """

    engine: str
    precision: str
    gates: GateLayout | Literal["none"]
    versions: dict[str, str]
    chip: str
    folder: str
    files: dict[str, str]
    parity: Literal["passed", "failed", "unverified"]
    tolerance: Tolerance
    first_bad_piece: str | None = None
    single: Single = "chain"
    guess: Route | None = None
    batches: Batches = "chain"

    @property
    def name(self) -> str:
        """As `--engine` takes it: `ort-fp32`."""
        return f"{self.engine}-{self.precision}"


@dataclass(frozen=True)
class FileInfo:
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json, format 1. Everything a deployment needs to know; no code, no pickle.

    Args:
        pieces: the fp32 ONNX pieces, piece -> file, relative to the bundle; what other engines are made from and
            compared with. Layers with the same weights share a file.
        graph: the whole model as one ONNX file, for programs without Python; None where it was not asked for.
    """

    format: int
    created_by: str
    task: str
    metric: str
    model: ModelInfo
    router: RouterInfo
    opset: int
    pieces: dict[str, str]
    engines: tuple[EngineInfo, ...]
    held_out: HeldOut | None = None
    tokenizer: str = "tokenizer/tokenizer.json"
    graph: str | None = None
    files: dict[str, FileInfo] = field(default_factory=dict)

    @property
    def reachable_layers(self) -> list[int]:
        """The layers (from 0) that some input may run: all of them, or those of the static route."""
        route = self.router.route
        return list(range(self.model.layers)) if route is None else [layer - 1 for layer in route]


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked."""

    path: Path
    manifest: Manifest

    def engine(self, name: str | None = None) -> EngineInfo:
        """The engine called `name` (`ort`, or `ort-fp32` with its precision), or the first; where it was built for
        several machines the one for this one, if there is one.

        Raises:
            BundleError: the bundle has no such engine.
        """
        found = [info for info in self.manifest.engines if name is None or name in (info.engine, info.name)]
        if found:
            alike = [info for info in found if info.name == found[0].name]
            return next((one for one in alike if not built_elsewhere(one.engine, one.versions, one.chip)), alike[0])
        have = ", ".join(info.name for info in self.manifest.engines)
        raise BundleError(f"{self.path}: has no engine {name!r}, only {have}; add it with hadskip-export build")

    def file(self, relative: str) -> Path:
        return self.path / relative


def read_bundle(path: str | Path) -> Bundle:
    """Opens a bundle and checks all of it before anything is used.

    Raises:
        BundleError: not a bundle; a format this version does not know; a missing, truncated or altered file; a path,
            in the manifest or inside an ONNX file, that leaves the bundle.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    root = folder.resolve()
    for name, info in manifest.files.items():
        file = _inside(root, folder, name)
        if not file.is_file():
            raise BundleError(f"{folder / name}: listed in the manifest but missing; copy or build the bundle again")
        size = file.stat().st_size
        if size != info.size:
            raise BundleError(f"{folder / name}: {size} bytes, the manifest says {info.size}; copy it again")
        if sha256(file) != info.sha256:
            raise BundleError(f"{folder / name}: its content is not what the manifest lists; copy it again")
    _check_model(folder, manifest)
    pieces = {file for files in (manifest.pieces, *(e.files for e in manifest.engines)) for file in files.values()}
    for name in {manifest.tokenizer} | pieces:
        _inside(root, folder, name)
        if name not in manifest.files:
            raise BundleError(f"{folder / name}: used by the manifest but not listed among its files")
    onnx_files = {*manifest.pieces.values(), *(name for name in manifest.files if name.endswith(".onnx"))}
    onnx_files.update(*(engine.files.values() for engine in manifest.engines if runs_onnx(engine.engine)))
    for name in onnx_files:
        _check_external_data(folder, root, name, manifest)
    return Bundle(folder, manifest)


def _check_model(folder: Path, manifest: Manifest) -> None:
    """
    Raises:
        BundleError: sizes that no model has, a route that it cannot take, or an engine without a piece that the
            runtime needs.
    """
    model, router = manifest.model, manifest.router
    if model.layers < 1 or model.max_length < 3 or len(set(model.labels)) < 2 or not manifest.engines:
        raise BundleError(f"{folder / MANIFEST}: needs a layer, room for three tokens, two labels and an engine")
    static = router.kind == "static"
    if static != (router.route is not None):
        raise BundleError(f"{folder / MANIFEST}: a static router has a route, one of gates has none; build it again")
    if static and not is_route(router.route, model.layers):
        raise BundleError(
            f"{folder / MANIFEST}: the route is {list(router.route or ())}, expected layers from 1 to {model.layers} in"
            " ascending order; build it again"
        )
    layers = [layer_name(index) for index in manifest.reachable_layers]
    for piece in ["embeddings", *layers, *gate_names("none" if static else "separate", model.layers), "head"]:
        if piece not in manifest.pieces:
            raise BundleError(f"{folder / MANIFEST}: the ONNX pieces lack {piece}")
    for engine in manifest.engines:
        if static != (engine.gates == "none"):
            raise BundleError(
                f"{folder / MANIFEST}: {engine.name} has gates {engine.gates!r}, which do not fit"
                f" a router of kind {router.kind!r}; build it again"
            )
        alone, batches = engine.single, engine.batches
        for piece in ["embeddings", *layers, *gate_names(engine.gates, model.layers), "head", alone, batches]:
            if piece not in (*engine.files, "chain"):
                raise BundleError(f"{folder / MANIFEST}: {engine.name} has no {piece}")
        if static and engine.single != "chain":
            raise BundleError(f"{folder / MANIFEST}: {engine.name} has nothing to decide, and a {engine.single} for it")
        if batches != "chain" and alone != "graph":
            raise BundleError(f"{folder / MANIFEST}: {engine.name} has a graph for batches, none for single inputs")
        if (engine.single == "guess") != (engine.guess is not None):
            raise BundleError(f"{folder / MANIFEST}: {engine.name} has a guess without its route, or a route for none")
        if engine.guess is not None and not is_route(engine.guess, model.layers):
            raise BundleError(
                f"{folder / MANIFEST}: {engine.name} guesses {list(engine.guess)}, expected layers from 1 to"
                f" {model.layers} in ascending order; build it again"
            )
        if len(engine.tolerance.margins) != model.layers:
            raise BundleError(f"{folder / MANIFEST}: {engine.name} needs a tolerance for each gate")


def _read_manifest(folder: Path) -> Manifest:
    import msgspec  # it and hashlib are imported where they are used: a tenth of the time to import this package

    file = folder / MANIFEST
    try:
        content, digests = file.read_bytes(), (folder / DIGEST).read_bytes().split()
    except OSError as error:
        raise BundleError(f"{folder}: not a bundle ({Path(error.filename).name}: {error.strerror})") from error
    if _digest(content).strip().encode() not in digests:
        raise BundleError(f"{file}: does not match {DIGEST}; it was edited or damaged, copy or build the bundle again")
    try:
        version = msgspec.json.decode(content, type=dict)["format"]
        if version != FORMAT:
            raise BundleError(f"{file}: format {version}, this version reads {FORMAT}; upgrade hadskip-export")
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{file}: not a manifest ({error})") from error


def _inside(root: Path, folder: Path, name: str) -> Path:
    """The listed file's path, resolved.

    Raises:
        BundleError: it is absolute, climbs out, or is a link that leads out.
    """
    pure = PurePosixPath(name)
    try:
        file = (root / name).resolve()
        file.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a link to itself
        raise BundleError(f"{folder / MANIFEST}: the path {name[:100]!r} cannot be a file ({error})") from error
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:|.*\\", name) or not file.is_relative_to(root):
        raise BundleError(f"{folder / MANIFEST}: the path {name!r} leaves the bundle; do not use this bundle")
    return file


def _check_external_data(folder: Path, root: Path, name: str, manifest: Manifest) -> None:
    for location in external_data_files(folder / name):
        target = str(PurePosixPath(name).parent / location)
        if target not in manifest.files:
            raise BundleError(
                f"{folder / name}: refers to {location!r}, outside the bundle's list of files; do not use this bundle"
            )
        _inside(root, folder, target)


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file's content."""
    import hashlib

    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Lists and hashes every file in `folder` and writes the manifest and its digest, last."""
    sealed = replace(manifest, files=_list(folder, folder, (MANIFEST, DIGEST)))
    content = _encode(sealed)
    (folder / MANIFEST).write_bytes(content)
    (folder / DIGEST).write_text(_digest(content))
    return sealed


def amend(bundle: Bundle, manifest: Manifest) -> None:
    """Puts another manifest in the place of a bundle's own, with other engines or a graph, whose files must be there.

    The digest file names both before the new one is in place: whoever is killed in between, or reads just then, has a
    bundle that loads. Folders of engines that are gone stay, for somebody may be serving them.
    """
    gone = {info.folder for info in bundle.manifest.engines} - {info.folder for info in manifest.engines}
    theirs = tuple(f"{folder}/" for folder in gone)
    files = {name: info for name, info in bundle.manifest.files.items() if not name.startswith(theirs)}
    for folder in [engine.folder for engine in manifest.engines] + ([] if manifest.graph is None else [GRAPH]):
        files |= _list(bundle.path, bundle.path / folder, known=files)
    content = _encode(replace(manifest, files=files))
    before = (bundle.path / MANIFEST).read_bytes()
    with replaced(bundle.path / DIGEST) as part:
        part.write_text(_digest(before) + _digest(content))
    with replaced(bundle.path / MANIFEST) as part:
        part.write_bytes(content)


def _list(root: Path, folder: Path, known: Container[str] = ()) -> dict[str, FileInfo]:
    """Size and digest of every file in `folder` that is not known already, by its path from `root`."""
    files = {file.relative_to(root).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: FileInfo(file.stat().st_size, sha256(file)) for name, file in files.items() if name not in known}


def _encode(manifest: Manifest) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest() + "\n"


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name `path` when the block ends well. A killed build leaves nothing that
    loads, for the manifest is written last; what a failed one wrote is removed.

    Raises:
        BundleError: `path` exists already and is not an empty folder, or nothing can take its place.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise BundleError(f"{path}: exists already; choose another --out")
    try:
        given, path = path, path.resolve()  # a link stays, and what it leads to is replaced
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path}: cannot be a folder ({error}); choose another --out") from error
    if os.path.ismount(path) or path == Path.cwd():
        raise BundleError(f"{given}: nothing can take the place of a mount or of the current folder; name one in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.time_ns()}.part")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
