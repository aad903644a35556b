"""What must hold before a file of a bundle is used: its size, its digest, its path, and where a graph inside it points.

An ONNX file can name a file anywhere as its data. Loading a bundle checks every such name before an engine reads it.
"""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hadskip_export.support.digests import sha256
from hadskip_export.support.errors import BundleError

MOST_BYTES = 64 << 30  # of all files together, which are read to the end: forty times BERT-large in fp32


@dataclass(frozen=True)
class FileInfo:
    """A file as a manifest lists it."""

    size: int
    sha256: str


def check_files(folder: Path, files: Mapping[str, FileInfo]) -> None:
    """Sizes first, so that no more is read than there should be.

    Raises:
        BundleError: a listed file is missing, truncated, altered, no regular file, or not inside `folder`; all of them
            together are more than a bundle can have.
    """
    places = {name: inside(folder, name) for name in files}
    for name, info in files.items():
        _check_size(folder / name, places[name], info.size)
    total = sum(info.size for info in files.values())
    if total > MOST_BYTES:
        raise BundleError(f"{folder}: {total:,} bytes in files; at most {MOST_BYTES:,} are read")
    for name, info in files.items():
        try:
            digest = sha256(places[name])
        except OSError as error:
            raise BundleError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if digest != info.sha256:
            raise BundleError(f"{folder / name}: its content is not what the manifest lists; copy it again")


def _check_size(named: Path, file: Path, size: int) -> None:
    try:
        found = os.stat(file)
    except OSError as error:
        raise BundleError(f"{named}: listed in the manifest but missing; copy or build the bundle again") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{named}: not a regular file; copy or build the bundle again")
    if found.st_size != size:
        raise BundleError(f"{named}: {found.st_size} bytes, the manifest says {size}; copy it again")


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
        raise BundleError(f"{folder}: its manifest's path {name!r} cannot be a file ({error})") from error
    leaves = pure.is_absolute() or ".." in pure.parts or re.match("[A-Za-z]:", name) or "\\" in name
    if leaves or not file.is_relative_to(root):
        raise BundleError(f"{folder}: its manifest's path {name!r} leaves the bundle; do not use this bundle")
    return file


def check_external_data(folder: Path, name: str, locations: Iterable[str], files: Mapping[str, FileInfo]) -> None:
    """
    Args:
        locations: where the ONNX file `name` has tensors, relative to its own folder.

    Raises:
        BundleError: one of them is not listed, or is no file.
    """
    for location in locations:
        target = str(PurePosixPath(name).parent / location)
        if target not in files or "*" in location:  # to ONNX Runtime `*/_ORT_MEM_ADDR_/*` is an address in memory
            raise BundleError(
                f"{folder / name}: refers to {location!r}, outside the bundle's list of files; do not use this bundle"
            )
        inside(folder, target)
