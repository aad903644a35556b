"""Writing a run folder: one writer at a time, and phases that are there whole or not at all."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from hadskip_export.data.runs import RunPaths, read_json
from hadskip_export.data.text import Text
from hadskip_export.support.errors import BundleError, HadskipError
from hadskip_export.support.files import replaced


class RunFolder(RunPaths):
    """A run folder that is being trained into."""

    def log(self, **record: Any) -> None:
        """Appends a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3)} | record) + "\n")


@contextmanager
def open_run(path: Path, settings: dict[str, Any], resume: bool) -> Iterator[RunFolder]:
    """Opens `path` for training and keeps every other run out of it until done.

    The lock is the kernel's and dies with its process.

    Args:
        settings: everything the result depends on; kept as recipe.json, and what a resumed run must repeat.

    Raises:
        BundleError: the folder is not empty and this is no resume, it belongs to a run with other settings, or another
            process is training into it.
    """
    run = RunFolder(path)
    if path.is_file():
        raise BundleError(f"{path}: is a file; --out names a folder")
    if path.is_dir() and any(path.iterdir()):
        if not resume:
            raise BundleError(f"{path}: is not empty; choose another --out, or continue that run with --resume")
        if not (path / "state").is_dir():
            raise BundleError(f"{path}: is not empty and not a run folder; choose another --out")
    settings = json.loads(json.dumps(settings))
    (path / "state").mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / "state" / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BundleError(f"{path}: another process is training into it") from None
    try:
        if run.recipe.is_file():
            before = read_json(run.recipe)
            different = [key for key in settings if settings[key] != before.get(key)]
            if different:
                raise BundleError(f"{path}: --resume with another {different[0]}; repeat the first command line")
        write_json(run.recipe, settings)
        yield run
    except HadskipError:
        learned = run.stage1.is_dir() or run.metrics.is_file()
        if not learned and not resume:  # refused before anything was: leave nothing behind
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        lock.release()


@contextmanager
def finished_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name `path` only when the block ends well; what a killed run left goes."""
    temporary = path.with_name(path.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(file: Path, value: Any) -> None:
    """Writes JSON whole or not at all; dataclasses become objects."""
    with replaced(file) as part:
        part.write_text(json.dumps(value, indent=2, default=asdict) + "\n")


def write_texts(file: Path, texts: list[Text]) -> None:
    """Writes what `hadskip_export.data.runs.read_texts` reads."""
    file.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
