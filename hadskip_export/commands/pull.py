"""`pull`: a bundle from the Hugging Face hub into a folder, checked."""

import shutil
from pathlib import Path
from typing import Any

from hadskip_export.runtime.bundle import DIGEST, MANIFEST, read_bundle, read_manifest
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.runtime.signatures import SIGNATURE
from hadskip_export.support.errors import BundleError, HadskipError, first_line, optional_import
from hadskip_export.support.files import new_folder


def pull(repository: str, out: str | Path, *, revision: str | None = None) -> Manifest:
    """Fetches the files that a bundle names, checks each by its hash, and writes the bundle.

    Args:
        repository: as `organisation/name`.
        out: the bundle to write.
        revision: a branch, a tag or a commit; the newest if left out. The hashes are the bundle's own: they say that it
            is whole, and a commit says whose it is.

    Raises:
        BundleError: `out` exists; the hub has no such repository, or what is there is no bundle or a damaged one.
        EngineError: huggingface_hub is not installed.
    """
    hub: Any = optional_import("huggingface_hub", "hub")
    target = Path(out)
    if target.exists():
        raise BundleError(f"--out {target}: exists; remove it, or choose another")
    with new_folder(target) as part:
        try:
            commit = hub.HfApi().model_info(repository, revision=revision).sha
            _fetch(hub, repository, commit, part, [MANIFEST, DIGEST, SIGNATURE])
            if (part / MANIFEST).is_file():
                _fetch(hub, repository, commit, part, list(read_manifest(part).files))
        except HadskipError:
            raise
        except Exception as error:  # the client raises whatever its transport does
            raise BundleError(f"{repository}: the hub did not give it ({first_line(error)})") from error
        if not (part / MANIFEST).is_file():
            raise BundleError(f"{repository}: not a bundle (no {MANIFEST} there)")
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's notes
        return read_bundle(part).manifest


def _fetch(hub: Any, repository: str, commit: str, folder: Path, names: list[str]) -> None:
    """These files and no other."""
    hub.snapshot_download(repository, revision=commit, local_dir=folder, allow_patterns=names)
