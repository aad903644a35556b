"""What is to be scored and where the answers go: each input in parts of so many rows, a file of answers for each.

    OUT/  score.json  reviews.csv-000000.jsonl  reviews.csv-000001.jsonl ...

A part is there whole or not at all. So whoever is stopped goes on with the parts that are missing, and whoever computes
one twice writes the same file.
"""

import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadskip_export.bulk.rows import CHUNK, LINE, answered, as_json
from hadskip_export.data.columnar import PARQUET, SPLITS, STATE
from hadskip_export.data.columns import Columns, TextRow, read_texts
from hadskip_export.data.rows import BETWEEN, NoRowsError, RowError, kind_of
from hadskip_export.runtime.bundle import MANIFEST
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.digests import sha256
from hadskip_export.support.errors import BundleError, DataError
from hadskip_export.support.files import replaced
from hadskip_export.support.locks import alone
from hadskip_export.support.progress import say

STATE_FILE = "score.json"
KINDS = (*BETWEEN, ".jsonl", PARQUET)
MOST_BAD = 100_000  # rows, one after the other: all are held until there is a good one
ERROR = "error"
CHANGES_NO_ANSWER = ("threads", "spinning", "verify", "warm_up")  # of the options

State = list[int]


@dataclass(frozen=True)
class Part:
    """Consecutive rows of an input, or the errors of those that cannot be read.

    Args:
        done: whether its answers are there; then the rows are left out.
    """

    place: Path
    name: str
    rows: Sequence[TextRow | RowError]
    count: int
    done: bool


@dataclass(frozen=True)
class Scored:
    """What was done.

    Args:
        rows: of all inputs.
        refused: that have an error in the place of an answer, among the parts that were computed now.
        parts, computed: files of answers, and how many of them were not there before.
        empty: inputs without a row.
    """

    rows: int = 0
    refused: int = 0
    parts: int = 0
    computed: int = 0
    empty: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """
    Args:
        inputs: name -> file; the name is what its answers are called.
        states: of each when the work began.
        rows: of a part.
        skips: whether a bad row gets an error for an answer; else it ends the work.
        options: as for `Predictor.load`.
    """

    bundle: Path
    inputs: dict[str, Path]
    states: dict[str, State]
    out: Path
    rows: int
    columns: Columns
    skips: bool
    options: dict[str, Any]

    @classmethod
    def of(
        cls, bundle: Path, inputs: dict[str, Path], out: Path, rows: int, columns: Columns, *, skips: bool,
        **options: Any,
    ) -> "Job":  # fmt: skip
        """With the inputs as they are now."""
        states = {name: _state(file) for name, file in inputs.items()}
        return cls(bundle, inputs, states, out, rows, columns, skips, options)

    def parts(self, name: str) -> Iterator[Part]:
        """Reads an input. Of what is done rows are only counted.

        Raises:
            DataError: see `read_texts`; a bad row, unless they are skipped. A file without a row is none.
        """
        entries = self._entries(name)
        for number in itertools.count():
            rows = list(itertools.islice(entries, self.rows))
            if not rows:
                return
            place = self.out / f"{name}-{number:06d}.jsonl"
            done = place.exists()
            yield Part(place, name, () if done else rows, len(rows), done)

    def _entries(self, name: str) -> Iterator[TextRow | RowError]:
        """Rows and errors by their line: a reader looks ahead."""
        waiting: list[RowError] = []

        def refuse(error: RowError) -> None:
            if len(waiting) >= MOST_BAD:
                raise DataError(f"{error}; so were {MOST_BAD:,} rows before it, one after the other; leave them out")
            self._refuse(error, waiting)

        try:
            for row in read_texts(self.inputs[name], self.columns, refuse):
                while waiting and waiting[0].line < row.line:
                    yield waiting.pop(0)
                yield row
        except NoRowsError:
            pass  # nothing but errors, perhaps
        yield from waiting

    def _refuse(self, error: RowError, refused: list[RowError]) -> None:
        if not self.skips:
            raise DataError(f"{error}; mend that row, or go on past bad rows with --on-error skip") from error
        refused.append(error)

    def write(self, predictor: Predictor, part: Part) -> int:
        """Computes a part's answers and writes them; returns how many of its rows were refused.

        Raises:
            DataError: a bad row, unless they are skipped; the input is no longer what it was when the work began.
        """
        file = self.inputs[part.name]
        refused = [row for row in part.rows if isinstance(row, RowError)]
        rows, records = [row for row in part.rows if not isinstance(row, RowError)], []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            records += answered(predictor, chunk, str(file), lambda error: self._refuse(error, refused), (ERROR,))
        records += [{LINE: error.line, ERROR: error.problem} for error in refused]
        records.sort(key=lambda record: record[LINE])
        if _state(file) != self.states[part.name]:
            raise DataError(f"{file}: was changed meanwhile; run the same command again")
        while not part.place.exists():
            try:
                with replaced(part.place) as place:
                    place.write_text("".join(f"{as_json(record)}\n" for record in records), encoding="utf-8")
            except BundleError:  # a worker that was taken for dead is writing the same
                time.sleep(0.05)
        return len(refused)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """With the folder, which is this process's alone meanwhile: a new one, or one to go on with. The answers to a
        file that has changed go.

        Raises:
            DataError: it has the answers of other work, or is something else; or another process works there.
        """
        state = self.out / STATE_FILE
        if self.out.exists() and not state.is_file() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise DataError(f"--out {self.out}: exists already, and is no folder of answers; choose another")
        self.out.mkdir(parents=True, exist_ok=True)
        taken = DataError(f"--out {self.out}: another process is working there; wait, or choose another")
        with alone(self.out / ".lock", taken):
            inputs = self._compared(state) | self.states
            with replaced(state) as part:
                text = json.dumps({"about": self._about(), "inputs": inputs}, indent=2)
                part.write_text(text + "\n", encoding="utf-8")
            yield

    def _compared(self, state: Path) -> dict[str, State]:
        """The inputs that had answers before, and their states."""
        parts = [file for file in self.out.iterdir() if re.search(r"-\d{6,}\.jsonl$", file.name)]
        if not parts:
            return {}
        try:
            before = json.loads(state.read_text(encoding="utf-8"))
            known, about = dict(before["inputs"]), dict(before["about"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"--out {self.out}: {STATE_FILE} is not what score writes; choose another") from error
        now = self._about()
        if changed := sorted(name for name in {*now, *about} if about.get(name) != now.get(name)):
            raise DataError(f"--out {self.out}: has answers of another {' and '.join(changed)}; choose another")
        for name in (name for name in self.inputs if name in known and known[name] != self.states[name]):
            say(f"{name}: another file than before; its answers are computed anew")
            for file in parts:
                if re.fullmatch(re.escape(name) + r"-\d{6,}\.jsonl", file.name):
                    file.unlink()
        return known

    def _about(self) -> dict[str, Any]:
        """What answers depend on, apart from the inputs; by names that say what differs."""
        told = {name: value for name, value in self.options.items() if name not in CHANGES_NO_ANSWER}
        options = {name: value for name, value in told.items() if value or (value == 0 and value is not False)}
        options.setdefault("router", "gates")
        columns = {"text column": self.columns.text, "pair column": self.columns.pair}
        about = {"bundle": sha256(self.bundle / MANIFEST), "rows": self.rows, "on-error": self.skips}
        return json.loads(json.dumps(about | columns | options, default=str))


def inputs_of(places: Sequence[str | Path]) -> dict[str, Path]:
    """Name -> file: of each file its own, of a folder those of its files that can be read.

    Raises:
        DataError: nothing there, something else, or two files of one name.
    """
    found: dict[str, Path] = {}
    for place in (Path(place).absolute() for place in places):
        files = [place]
        if (place / SPLITS).is_file():
            raise DataError(f"{place}: has several splits; name those to score, as {place / 'test'}")
        if place.is_dir() and not (place / STATE).is_file():
            files = sorted(file for file in place.iterdir() if kind_of(file) in KINDS and file.name[0] != ".")
            if not files:
                raise DataError(f"{place}: no file to score in it ({', '.join(KINDS)})")
        for file in files:
            if not file.exists():
                raise DataError(f"{file}: no such file")
            if not file.is_dir() and kind_of(file) not in KINDS:
                raise DataError(f"{file}: expected {', '.join(KINDS)}, or a folder of such")
            if file.name in found:
                raise DataError(f"{file}: {found[file.name]} has the same name; score them to folders of their own")
            found[file.name] = file
    return found


def _state(file: Path) -> State:
    """What another file in its place would not have.

    Raises:
        DataError: there is none any more.
    """
    try:
        about = (file / STATE if file.is_dir() else file).stat()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    return [about.st_size, about.st_mtime_ns]
