"""Where a training is in the middle of a phase, so that one that was killed goes on from there."""

import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import replaced

SECONDS_BETWEEN = 60.0
SHARE = 0.03  # of the time, that writing them may take


class Checkpoints:
    """A file for every phase that has begun, until what it trains is kept.

    Args:
        folder: where they lie; theirs alone. None are written where left out.
        saves: whether any are written at all; of several processes one does.
    """

    def __init__(self, folder: Path | None = None, saves: bool = True):
        self._folder, self._saves = folder, saves
        self._last = time.monotonic()
        self._took = 0.0

    def due(self) -> bool:
        """Whether the last one is old enough for its price."""
        return (
            self._saves
            and self._folder is not None
            and time.monotonic() - self._last > max(SECONDS_BETWEEN, self._took / SHARE)
        )

    def save(self, phase: str, state: dict[str, Any]) -> None:
        """In place of the phase's last one, whole or not at all."""
        if self._folder is None or not self._saves:
            return
        started = time.monotonic()
        self._folder.mkdir(exist_ok=True)
        with replaced(_file(self._folder, phase)) as part, part.open("wb", buffering=0) as handle:
            torch.save(state, handle)  # by a handle of ours, for torch's own does not say that a disk is full
        self._last = time.monotonic()
        self._took = self._last - started

    def load(self, phase: str, device: str) -> dict[str, Any] | None:
        """What was saved last, its tensors on `device`; None of a phase that has not been saved.

        Raises:
            BundleError: it is damaged.
        """
        if self._folder is None or not (file := _file(self._folder, phase)).is_file():
            return None
        try:
            with zipfile.ZipFile(file) as parts:  # torch.load looks at no checksum
                damaged = parts.testzip()
        except (zipfile.BadZipFile, EOFError):
            damaged = "no archive"
        if damaged:
            raise BundleError(
                f"{file}: damaged ({damaged}); remove it and go on with --resume, this phase from its start"
            )
        return torch.load(file, map_location=device, weights_only=True)

    def clear(self) -> None:
        """What the phases trained is kept elsewhere now."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _file(folder: Path, phase: str) -> Path:
    return folder / f"{re.sub(r'[^a-z0-9.]+', '-', phase.lower())}.pt"
