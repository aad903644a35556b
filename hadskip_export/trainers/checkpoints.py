"""Where a training is in the middle of a phase, so that one that was killed goes on from there."""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from hadskip_export.support.digests import check_digests, write_digests
from hadskip_export.support.files import new_folder

SECONDS_BETWEEN = 60.0
SHARE = 0.03  # of the time, that writing them may take
STATE = "state.pt"


class Checkpoints:
    """A folder for every phase that has begun, until what it trains is kept.

    Args:
        folder: where they lie; theirs alone. None are written where left out.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._last = time.monotonic()
        self._took = 0.0

    def due(self) -> bool:
        """Whether the last one is old enough for its price."""
        return self._folder is not None and time.monotonic() - self._last > max(SECONDS_BETWEEN, self._took / SHARE)

    def save(self, phase: str, state: dict[str, Any]) -> None:
        """In place of the phase's last one, whole or not at all."""
        if self._folder is None:
            return
        started = time.monotonic()
        with new_folder(_folder(self._folder, phase), replace=True) as part:
            torch.save(state, part / STATE)
            write_digests(part)
        self._last = time.monotonic()
        self._took = self._last - started

    def load(self, phase: str, device: str) -> dict[str, Any] | None:
        """What was saved last, its tensors on `device`; None of a phase that has not been saved.

        Raises:
            BundleError: it is damaged.
        """
        if self._folder is None or not (folder := _folder(self._folder, phase)).is_dir():
            return None
        check_digests(folder)
        return torch.load(folder / STATE, map_location=device, weights_only=True)

    def clear(self) -> None:
        """What the phases trained is kept elsewhere now."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _folder(among: Path, phase: str) -> Path:
    return among / re.sub(r"[^a-z0-9.]+", "-", phase.lower())
