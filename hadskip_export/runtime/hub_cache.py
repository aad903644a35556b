"""Bundles in the cache of the Hugging Face hub, whose files are links to blobs."""

import os
import shutil
import time
from pathlib import Path

from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import new_folder

SNAPSHOTS, BLOBS, OURS = "snapshots", "blobs", "hadskip-export"
MOST_FILES = 10_000
SECONDS = 120.0  # that another process may take to do the same


def without_links(folder: Path, manifest: str) -> Path:
    """The folder; of a snapshot in the cache one beside it with the files themselves, made once, by hard links where
    the system has them. For engines look for a graph's tensors beside its file, which of a link is among the blobs.

    Args:
        manifest: the file that tells a bundle.

    Raises:
        BundleError: a link that leads to no blob; or the cache cannot be written to.
    """
    if folder.parent.name != SNAPSHOTS or not (folder / manifest).is_symlink():
        return folder
    repository = folder.parent.parent
    made, blobs = repository / OURS / folder.name, (repository / BLOBS).resolve()
    last = time.monotonic() + SECONDS
    while not made.is_dir():
        try:
            _make(made, folder, blobs)
        except OSError as error:
            raise BundleError(
                f"{folder}: links of the hub's cache, and {made} cannot be written ({error.strerror}); fetch the bundle"
                " with hadskip-export pull"
            ) from error
        except BundleError:  # another process is making it, or a link leads out
            if made.parent.joinpath(f".{made.name}.part").is_dir() and time.monotonic() < last:
                time.sleep(0.05)
                continue
            if not made.is_dir():
                raise
    return made


def _make(made: Path, folder: Path, blobs: Path) -> None:
    with new_folder(made) as part:
        for number, link in enumerate(sorted(folder.rglob("*"))):
            place = part / link.relative_to(folder)
            if link.is_dir():
                place.mkdir()
                continue
            blob = link.resolve()
            if number > MOST_FILES or not blob.is_relative_to(blobs) or not blob.is_file():
                raise BundleError(f"{link}: leads to no file of the hub's cache; do not use this bundle")
            try:
                os.link(blob, place)
            except OSError:  # another file system, or one that has no hard links
                shutil.copyfile(blob, place)
