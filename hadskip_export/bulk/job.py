"""What is to be scored and where the answers go: each input in parts of so many rows, a file of answers for each.

    OUT/  score.json  reviews.csv-000000.jsonl  reviews.csv-000001.jsonl ...

A part is there whole or not at all. So whoever is stopped goes on with the parts that are missing, and whoever computes
one twice writes the same file.
"""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hadskip_export.bulk.rows import LINE, Record, answered, as_json
from hadskip_export.data.columnar import PARQUET, STATE
from hadskip_export.data.tables import BETWEEN, Columns, TextRow, kind_of, read_texts
from hadskip_export.runtime.bundle import MANIFEST
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.digests import sha256
from hadskip_export.support.errors import BundleError, DataError
from hadskip_export.support.files import replaced
from hadskip_export.support.progress import say

STATE_FILE = "score.json"
KINDS = (*BETWEEN, ".jsonl", PARQUET)
CHUNK = 1024  # inputs computed with one call
ERROR = "error"


@dataclass(frozen=True)
class Part:
    """Consecutive rows of an input.

    Args:
        rows: those that could be read; none where their answers are there already.
        refused: the records of those that could not.
        count: of all of them.
    """

    place: Path
    name: str
    rows: Sequence[TextRow]
    refused: Sequence[Record]
    count: int


@dataclass(frozen=True)
class Scored:
    """What was done.

    Args:
        rows: of all inputs.
        refused: that have an error in the place of an answer, among the parts that were computed now.
        parts, computed: files of answers, and how many of them were not there before.
    """

    rows: int = 0
    refused: int = 0
    parts: int = 0
    computed: int = 0


@dataclass(frozen=True)
class Job:
    """
    Args:
        inputs: name -> file; the name is what its answers are called.
        rows: of a part.
        skips: whether a bad row gets an error for an answer; else it ends the work.
        options: as for `Predictor.load`.
    """

    bundle: Path
    inputs: dict[str, Path]
    out: Path
    rows: int
    columns: Columns
    skips: bool
    options: dict[str, Any] = field(default_factory=dict)

    def parts(self, name: str) -> Iterator[Part]:
        """Reads an input. Of what is done rows are only counted.

        Raises:
            DataError: see `read_texts`; a bad row, unless they are skipped.
        """
        refused: list[Record] = []
        found = self._rows_of(name, refused)
        for number in itertools.count():
            rows = list(itertools.islice(found, self.rows))
            if not rows and not refused:
                return
            place, count, bad = self._place(name, number), len(rows) + len(refused), tuple(refused)
            refused.clear()
            yield Part(place, name, () if place.exists() else rows, bad, count)

    def _rows_of(self, name: str, refused: list[Record]) -> Iterator[TextRow]:
        file = self.inputs[name]
        try:
            yield from read_texts(file, self.columns, lambda error: self._refuse(file, error, refused))
        except DataError as error:
            if not self.skips:
                raise
            say(f"left out: {error}")  # a file of which nothing can be read; others can

    def _refuse(self, file: Path, error: DataError, refused: list[Record]) -> None:
        if not self.skips:
            raise DataError(f"{error}; mend that row, or go on past bad rows with --on-error skip") from error
        line, _, problem = str(error).removeprefix(f"{file}, line ").partition(": ")
        refused.append({LINE: int(line), ERROR: problem})

    def write(self, predictor: Predictor, part: Part) -> int:
        """Computes a part's answers and writes them; returns how many of its rows were refused."""
        refused, records, file = list(part.refused), [], self.inputs[part.name]
        for start in range(0, len(part.rows), CHUNK):
            rows = part.rows[start : start + CHUNK]
            records += answered(predictor, rows, str(file), lambda error: self._refuse(file, error, refused))
        every = sorted([*records, *refused], key=lambda record: record[LINE])
        while not part.place.exists():
            try:
                with replaced(part.place) as place:
                    place.write_text("".join(f"{as_json(record)}\n" for record in every), encoding="utf-8")
            except BundleError:  # a worker that was taken for dead is writing the same
                time.sleep(0.05)
        return len(refused)

    def begin(self) -> None:
        """Makes the folder, or goes on with one of the same work. The answers to a file that has changed go.

        Raises:
            DataError: it has the answers of other work, or is something else.
        """
        file = self.out / STATE_FILE
        about, inputs = self._about(), {name: _state(path) for name, path in self.inputs.items()}
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            if changed := [name for name, value in about.items() if before["about"].get(name) != value]:
                raise DataError(f"--out {self.out}: has answers of another {' and '.join(changed)}; choose another")
            for name in (name for name, state in before["inputs"].items() if inputs.get(name) != state):
                say(f"{name}: another file than before; its answers are computed anew")
                for old in self.out.glob(f"{_escaped(name)}-*.jsonl"):
                    old.unlink()
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise DataError(f"--out {self.out}: exists already, and is no folder of answers; choose another")
        self.out.mkdir(parents=True, exist_ok=True)
        with replaced(file) as part:
            part.write_text(json.dumps({"about": about, "inputs": inputs}, indent=2) + "\n", encoding="utf-8")

    def _about(self) -> dict[str, Any]:
        """What answers depend on, apart from the inputs."""
        columns = [self.columns.text, self.columns.pair]
        return {
            "bundle": sha256(self.bundle / MANIFEST), "options": json.loads(json.dumps(self.options)),
            "columns": columns, "rows": self.rows, "skips": self.skips,
        }  # fmt: skip

    def _place(self, name: str, number: int) -> Path:
        return self.out / f"{name}-{number:06d}.jsonl"


def inputs_of(places: Sequence[str | Path]) -> dict[str, Path]:
    """Name -> file: of each file its own, of a folder those of its files that can be read.

    Raises:
        DataError: nothing there, or two files of one name.
    """
    found: dict[str, Path] = {}
    for place in map(Path, places):
        files = [place]
        if place.is_dir() and not (place / STATE).is_file():
            files = sorted(file for file in place.iterdir() if kind_of(file) in KINDS)
            if not files:
                raise DataError(f"{place}: no file to score in it ({', '.join(KINDS)})")
        for file in files:
            if not file.exists():
                raise DataError(f"{file}: no such file")
            if file.name in found:
                raise DataError(f"{file}: {found[file.name]} has the same name; score them to folders of their own")
            found[file.name] = file
    return found


def _state(file: Path) -> list[int | str]:
    """What another file in its place would not have."""
    about = (file / STATE if file.is_dir() else file).stat()
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def _escaped(name: str) -> str:
    """For `glob`."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
