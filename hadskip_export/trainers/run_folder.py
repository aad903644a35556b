"""Writing a run folder: one writer at a time, and phases that are there whole or not at all."""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hadskip_export.data.runs import RunPaths, read_json
from hadskip_export.data.text import Text
from hadskip_export.support.digests import check_digests, write_digests
from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import named, new_folder, replaced
from hadskip_export.support.locks import alone

CONTENTS = {"model_digest": "the files of --model have", "data": "the texts of --train or --eval have"}
TAKEN_OVER = ("threads",)  # by a resumed run from the one it goes on with; all else it has to repeat


class RunFolder(RunPaths):
    """A run folder that is being trained into."""

    @property
    def threads(self) -> int:
        """Of torch, with which the run began."""
        return read_json(self.recipe)["threads"]

    def log(self, **record: Any) -> None:
        """Appends a line to metrics.jsonl, all of it or nothing."""
        line = json.dumps({"time": round(time.time(), 3)} | record) + "\n"
        with named(self.metrics), self.metrics.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(line.encode()) < len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.metrics))


@contextmanager
def open_run(path: Path, settings: dict[str, Any], resume: bool, force: bool = False) -> Iterator[RunFolder]:
    """Opens `path` for training and keeps every other run out of it until done.

    The lock is the kernel's and dies with its process.

    Args:
        settings: everything the result depends on; kept as recipe.json, and what a resumed run must repeat.
        force: a run that is there is removed first.

    Raises:
        BundleError: the folder is not empty and this neither resumes nor replaces, it belongs to a run with other
            settings, or another process is training into it.
    """
    run = RunFolder(path)
    if path.is_file():
        raise BundleError(f"{path}: is a file; --out names a folder")
    begun = path.is_dir() and any(path.iterdir())
    if begun:
        if not (resume or force):
            raise BundleError(
                f"{path}: is not empty; choose another --out, continue that run with --resume, or replace it with"
                " --force"
            )
        if not (path / "state").is_dir():
            raise BundleError(f"{path}: is not empty and not a run folder; choose another --out")
    settings = json.loads(json.dumps(settings))
    (path / "state").mkdir(parents=True, exist_ok=True)
    taken = BundleError(f"{path}: another process is training into it")
    with alone(path / "state" / "lock", taken):
        try:
            with named(path):
                if begun and force:
                    _remove_all_but(path / "state" / "lock", path)
                    begun = False
                write_json(run.recipe, _compared(run, settings))
                yield run
        except BaseException:
            logged = run.metrics.is_file() and run.metrics.stat().st_size > 0
            learned = logged or run.stage1.is_dir() or run.checkpoints.is_dir()
            if not learned and not begun:  # stopped before anything was: leave nothing behind
                shutil.rmtree(path, ignore_errors=True)
            raise


def _compared(run: RunFolder, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings to go on with: those of a run that is there, where they may not change in its middle.

    Raises:
        BundleError: it is a run with others.
    """
    if not run.recipe.is_file():
        return settings
    before = read_json(run.recipe)
    different = [key for key in settings if key not in TAKEN_OVER and settings[key] != before.get(key)]
    if different and different[0] in CONTENTS:
        raise BundleError(
            f"{run.path}: {CONTENTS[different[0]]} changed since that run began; put them back, or begin anew with"
            " --force"
        )
    if different:
        raise BundleError(f"{run.path}: --resume with another {different[0]}; repeat the first command line")
    return settings | {key: before[key] for key in TAKEN_OVER if key in before}


def _remove_all_but(lock: Path, folder: Path) -> None:
    """The recipe last: without one it is no run."""
    for place in sorted(folder.iterdir(), key=lambda place: place.name == "recipe.json"):
        if place == lock.parent:
            _remove_all_but(lock, place)
        elif place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        elif place != lock:
            place.unlink()


@contextmanager
def finished_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name `path` only when the block ends well, with the digests of its files."""
    with new_folder(path) as folder:
        yield folder
        write_digests(folder)


def is_finished(path: Path) -> bool:
    """Whether a `finished_folder` is there.

    Raises:
        BundleError: a file of it is damaged.
    """
    check_digests(path)
    return path.is_dir()


def write_json(file: Path, value: Any) -> None:
    """Writes JSON whole or not at all; dataclasses become objects."""
    with replaced(file) as part:
        part.write_text(json.dumps(value, indent=2, default=asdict) + "\n")


def write_texts(file: Path, texts: list[Text]) -> None:
    """Writes what `hadskip_export.data.runs.read_texts` reads."""
    with replaced(file) as part:
        part.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
