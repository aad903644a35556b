"""A bundle's last step: every file listed and hashed, the manifest written, and the whole put in its place."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec

from hadskip_export.exporters.sign import JOURNAL, Signer
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, Bundle, check_model, graphs_of
from hadskip_export.runtime.graphs import read_graph
from hadskip_export.runtime.integrity import FileInfo
from hadskip_export.runtime.manifest import ENGINES_FOLDER, MODEL, Manifest
from hadskip_export.runtime.signatures import SIGNATURE
from hadskip_export.support.digests import sha256
from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import new_folder, replaced, sync
from hadskip_export.support.progress import say

SERVED_SECONDS = 24 * 3600  # that whoever serves an engine may take to load the bundle anew once it is replaced


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Lists and hashes what a new bundle needs and writes its manifest, the digest last."""
    sealed = _listed(folder, manifest, {})
    content = _encode(sealed)
    (folder / MANIFEST).write_bytes(content)
    (folder / DIGEST).write_text(_digest(content))
    return sealed


def amend(bundle: Bundle, manifest: Manifest, signer: Signer | None = None) -> None:
    """Puts another manifest in the place of a bundle's own, with other engines or points, whose files must be there.

    The digest file names both before the new one is in place: whoever is killed in between, or reads just then, has a
    bundle that loads. Files that are no longer named stay, for somebody may be serving them (`clear`).

    Raises:
        BundleError: nobody could load the bundle with this manifest; nothing is written.
    """
    check_model(bundle.path, manifest)
    known = {name: info for name, info in bundle.manifest.files.items() if not name.startswith(ENGINES_FOLDER)}
    after = _listed(bundle.path, manifest, known)
    content, before = _encode(after), (bundle.path / MANIFEST).read_bytes()
    added = [bundle.path / name for name in set(after.files) - set(bundle.manifest.files)]
    sync(*added, *{file.parent for file in added})
    with replaced(bundle.path / DIGEST) as part:
        part.write_text(_digest(before) + _digest(content))
    with replaced(bundle.path / MANIFEST) as part:
        part.write_bytes(content)
    for name in set(bundle.manifest.files) - set(after.files):
        os.utime(bundle.path / name)  # from now on it stays for `SERVED_SECONDS`
    if signer is not None:
        signer.sign(bundle.path)
    elif (bundle.path / SIGNATURE).exists():
        say(
            f"{bundle.path}: changed, and its signature is of what it was before; sign it again with hadskip-export"
            f" build {bundle.path} --sign KEY"
        )


@contextmanager
def undone_if_failed(bundle: Bundle) -> Iterator[None]:
    """Removes what was written into a bundle meanwhile, if the block fails; if its process is killed, the next `undo`
    does."""
    journal = bundle.path / JOURNAL
    with replaced(journal) as part:
        part.write_bytes(msgspec.json.encode([_name(bundle.path, file) for file in _files(bundle.path)]))
    try:
        yield
    except BaseException:
        undo(bundle.path)
        raise
    journal.unlink()


def undo(path: Path) -> None:
    """Removes what somebody who was stopped has added to a bundle and not named in its manifest. Nobody else may be
    adding to it."""
    for part in path.glob(".*.part"):
        part.unlink()
    journal = path / JOURNAL
    if not journal.is_file():
        return
    manifest = msgspec.json.decode((path / MANIFEST).read_bytes())
    kept = {*msgspec.json.decode(journal.read_bytes()), *manifest["files"]}
    for file in list(_files(path)):
        if _name(path, file) not in kept:
            file.unlink()
    for folder in (path / ENGINES_FOLDER).iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
    journal.unlink()


def _name(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix()


def _files(folder: Path) -> Iterator[Path]:
    return (file for room in (MODEL, ENGINES_FOLDER) for file in (folder / room).rglob("*") if file.is_file())


def clear(bundle: Bundle) -> None:
    """Removes files that the manifest does not name, of a killed build or replaced, once nobody will be serving them
    any more."""
    for room in (MODEL, ENGINES_FOLDER):
        for file in sorted((bundle.path / room).rglob("*"), reverse=True):  # what is in a folder before the folder
            if file.is_dir():
                if not any(file.iterdir()) and _is_old(file):
                    file.rmdir()
            elif file.relative_to(bundle.path).as_posix() not in bundle.manifest.files and _is_old(file):
                file.unlink()


def _is_old(file: Path) -> bool:
    return time.time() - file.stat().st_mtime >= SERVED_SECONDS


def _listed(folder: Path, manifest: Manifest, known: Mapping[str, FileInfo]) -> Manifest:
    """The manifest with every file that it needs. `known`: files that were hashed before and are never written over."""
    manifest = replace(manifest, files={})
    names = {manifest.tokenizer, manifest.weights, *graphs_of(manifest)}
    names.update(*(engine.files.values() for engine in manifest.engines))
    found = [*(folder / "golden").glob("*"), *(folder / MODEL).glob("*.json")]
    for engine in manifest.engines:
        found += [file for file in (folder / engine.folder).rglob("*") if file.is_file()]
    names |= {file.relative_to(folder).as_posix() for file in found}
    for graph in graphs_of(manifest):
        names |= {str(PurePosixPath(graph).parent / name) for name in read_graph(folder / graph).locations}
    infos = {name: known.get(name) or _info(folder / name) for name in sorted(names)}
    return replace(manifest, files=infos)


def _info(file: Path) -> FileInfo:
    return FileInfo(file.stat().st_size, sha256(file))


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() + "\n"


@contextmanager
def new_bundle(path: Path, force: bool = False) -> Iterator[Path]:
    """A temporary sibling that takes the name `path` when the block ends well; see `support.files.new_folder`.

    Raises:
        BundleError: `path` exists already and is not an empty folder, nor with `force` a bundle; nothing can take its
            place; or another process is writing it.
    """
    try:
        given, path = path, path.resolve()  # a link stays, and what it leads to is replaced
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path}: cannot be a folder ({error}); choose another --out") from error
    if os.path.ismount(path) or path == Path.cwd():
        raise BundleError(f"{given}: nothing can take the place of a mount or of the current folder; name one in it")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        if not force:
            raise BundleError(f"{given}: exists already; choose another --out, or replace a bundle with --force")
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{given}: is no bundle, and --force replaces nothing else; choose another --out")
    with new_folder(path, replace=force) as folder:
        yield folder
