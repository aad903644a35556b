"""What a comparison keeps: its settings, a run and a result of each entrant, and a teacher of each seed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadskip_export.comparison.entrants import Entrant
from hadskip_export.support.errors import BundleError
from hadskip_export.support.files import named, new_folder, replaced
from hadskip_export.support.locks import alone

MADE_BY = "made-by"  # in a teacher's folder: the entrant whose stage I it is


@dataclass(frozen=True)
class ComparisonFolder:
    """`compare.json`, `runs/`, `results/` and `teachers/`."""

    path: Path

    @contextmanager
    def begun(self, settings: dict[str, Any]) -> Iterator[None]:
        """With the folder, which is this process's alone meanwhile: a new one, or one to go on with.

        Args:
            settings: everything that the results depend on.

        Raises:
            BundleError: it is of another comparison, or something else; or another process works there.
        """
        file, lock = self.path / "compare.json", self.path / "lock"
        others = self.path.is_dir() and any(place != lock for place in self.path.iterdir())
        if self.path.is_file() or (others and not file.is_file()):
            raise BundleError(f"{self.path}: is not empty and not a comparison; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        with alone(lock, BundleError(f"{self.path}: another process is comparing there")), named(self.path):
            settings = json.loads(json.dumps(settings, default=str))
            runs = self.path / "runs"
            before = json.loads(file.read_text()) if runs.is_dir() and any(runs.iterdir()) else settings
            if different := [name for name in settings if settings[name] != before.get(name)]:
                raise BundleError(f"{self.path}: is a comparison with another {different[0]}; choose another --out")
            with replaced(file) as part:
                part.write_text(json.dumps(settings, indent=2) + "\n")
            (self.path / "results").mkdir(exist_ok=True)
            yield

    def run(self, entrant: Entrant) -> Path:
        return self.path / "runs" / entrant.file

    def result(self, entrant: Entrant) -> Path:
        return self.path / "results" / f"{entrant.file}.json"

    def teacher_for(self, entrant: Entrant) -> Path | None:
        """The model that another entrant of its seed has fine-tuned; None where this one has to."""
        place = self._teacher(entrant)
        return place if place.is_dir() and (place / MADE_BY).read_text() != entrant.file else None

    def keep_teacher(self, entrant: Entrant) -> None:
        """For the others of its seed, unless there is one."""
        if not (place := self._teacher(entrant)).is_dir():
            with new_folder(place) as part:
                shutil.copytree(self.run(entrant) / "stage1", part, dirs_exist_ok=True)
                (part / MADE_BY).write_text(entrant.file)

    def leave_figures(self, entrant: Entrant) -> None:
        """Removes the weights of a run that is done."""
        for place in ("budgets", "stage1", "stage2"):
            shutil.rmtree(self.run(entrant) / place, ignore_errors=True)

    def _teacher(self, entrant: Entrant) -> Path:
        return self.path / "teachers" / f"s{entrant.seed}"
