"""What must hold before a file of a bundle is used: its size, its digest, its path, and where a graph inside it points.

An ONNX file can name a file anywhere as its data. Loading a bundle checks every such name before an engine reads it,
without the onnx library: only the fields on the way to those names are decoded (protobuf wire format, onnx.proto).
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hadskip_export.support.digests import sha256
from hadskip_export.support.errors import BundleError

# message -> {field number: message of that field}. Tensors end the walk: their field 13 holds key/value entries.
_WALK = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA = 13


@dataclass(frozen=True)
class FileInfo:
    """A file as a manifest lists it."""

    size: int
    sha256: str


def check_files(folder: Path, files: Mapping[str, FileInfo]) -> None:
    """
    Raises:
        BundleError: a listed file is missing, truncated, altered, or not inside `folder`.
    """
    for name, info in files.items():
        file = inside(folder, name)
        if not file.is_file():
            raise BundleError(f"{folder / name}: listed in the manifest but missing; copy or build the bundle again")
        size = file.stat().st_size
        if size != info.size:
            raise BundleError(f"{folder / name}: {size} bytes, the manifest says {info.size}; copy it again")
        if sha256(file) != info.sha256:
            raise BundleError(f"{folder / name}: its content is not what the manifest lists; copy it again")


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a manifest names, resolved.

    Raises:
        BundleError: it is absolute, climbs out, or is a link that leads out.
    """
    root, pure = folder.resolve(), PurePosixPath(name)
    try:
        file = (root / name).resolve()
        file.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a link to itself
        raise BundleError(f"{folder}: its manifest's path {name[:100]!r} cannot be a file ({error})") from error
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:|.*\\", name) or not file.is_relative_to(root):
        raise BundleError(f"{folder}: its manifest's path {name!r} leaves the bundle; do not use this bundle")
    return file


def check_external_data(folder: Path, name: str, files: Mapping[str, FileInfo]) -> None:
    """
    Raises:
        BundleError: the ONNX file `name` takes data from a file that is not listed, or is none.
    """
    for location in external_data_files(folder / name):
        target = str(PurePosixPath(name).parent / location)
        if target not in files:
            raise BundleError(
                f"{folder / name}: refers to {location!r}, outside the bundle's list of files; do not use this bundle"
            )
        inside(folder, target)


def external_data_files(file: Path) -> set[str]:
    """The `location` of every tensor kept outside `file`.

    Raises:
        BundleError: not an ONNX file, or a truncated one.
    """
    try:
        with (
            file.open("rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            return set(_locations(view, 0, len(view), "model"))
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{file}: not a readable ONNX file ({error}); build the bundle again") from error


def _locations(view: memoryview, start: int, end: int, message: str) -> Iterator[str]:
    for number, low, high in _fields(view, start, end):
        if message == "tensor":
            if number == _EXTERNAL_DATA:
                entry = {n: bytes(view[a:b]).decode() for n, a, b in _fields(view, low, high)}
                if entry.get(1) == "location":
                    yield entry.get(2, "")
        elif number in _WALK[message]:
            yield from _locations(view, low, high, _WALK[message][number])


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields of a message as (number, start, end) of their content."""
    while position < end:
        tag, position = _varint(view, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(view, position)
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        elif kind == 2:
            size, position = _varint(view, position)
            if position + size > end:
                raise ValueError("a field reaches past the end")
            yield tag >> 3, position, position + size
            position += size
        else:
            raise ValueError(f"unknown wire type {kind}")
    if position != end:
        raise ValueError("a field reaches past the end")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
