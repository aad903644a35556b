"""`push`: a bundle to the Hugging Face hub, with a page that says what it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.report.card import Times, model_card
from hadskip_export.runtime.bundle import DIGEST, MANIFEST, read_bundle
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.runtime.signatures import SIGNATURE
from hadskip_export.support.errors import BundleError, DataError, first_line, optional_import

CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """
    Args:
        url: of the commit; None of a dry run.
        files: what it has, without the card.
    """

    repository: str
    url: str | None
    files: tuple[str, ...]
    card: str


def push(
    bundle: str | Path,
    repository: str,
    *,
    bench: str | Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Makes the repository if there is none, and puts the bundle there in one commit: the files that its manifest
    names, and a card.

    Args:
        repository: as `organisation/name`.
        bench: what `bench --json` wrote of this bundle, for the card.
        private: where the repository is made by this.
        dry_run: only make the card.

    Raises:
        BundleError: see `read_bundle`; the hub refused.
        DataError: `bench` is no such file.
        EngineError: huggingface_hub is not installed.
    """
    opened = read_bundle(bundle)
    signed = (opened.path / SIGNATURE).is_file()
    files = tuple(sorted({*opened.manifest.files, MANIFEST, DIGEST, *([SIGNATURE] if signed else [])}))
    times = None if bench is None else _times(Path(bench), opened.manifest)
    card = model_card(opened.manifest, repository, times)
    if dry_run:
        return Pushed(repository, None, files, card)
    hub: Any = optional_import("huggingface_hub", "hub")
    add = hub.CommitOperationAdd
    operations = [add(path_in_repo=name, path_or_fileobj=str(opened.path / name)) for name in files]
    operations.append(add(path_in_repo=CARD, path_or_fileobj=card.encode()))
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if not signed and SIGNATURE in api.list_repo_files(repository):
            operations.append(hub.CommitOperationDelete(path_in_repo=SIGNATURE))  # of the bundle that was there before
        commit = api.create_commit(repository, operations, commit_message="A bundle of hadskip-export")
    except Exception as error:  # the client raises whatever its transport does
        raise BundleError(f"{repository}: the hub did not take it ({first_line(error)})") from error
    return Pushed(repository, str(commit.commit_url), files, card)


def _times(file: Path, manifest: Manifest) -> Times:
    """
    Raises:
        DataError: no such file, or figures of something else than this bundle does with somebody's texts.
    """
    try:
        times = msgspec.json.decode(file.read_bytes(), type=Times)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"--bench {file}: not what hadskip-export bench --json wrote ({first_line(error)})") from error
    have = {engine.name for engine in manifest.engines}
    for row in times.rows:
        if (name := f"{row.engine}-{row.precision}-{row.cut}") not in have:
            raise DataError(f"--bench {file}: times {name}, which this bundle has not; run bench on it anew")
        if row.data is None:
            raise DataError(f"--bench {file}: times made-up texts, which say nothing of others; run bench with --data")
    return times
