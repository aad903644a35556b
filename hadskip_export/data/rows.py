"""Files as rows of named columns, streamed, each with its line number: CSV, TSV and JSONL, packed with gzip or not,
Parquet, and what `datasets` has saved."""

import ast
import contextlib
import csv
import gzip
import json
import math
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hadskip_export.data.columnar import PARQUET, read_parquet, read_saved
from hadskip_export.data.problems import MULTI, RANKING, SINGLE, Label, ProblemType
from hadskip_export.support.errors import DataError

PACKED = ".gz"
NO_ROWS = "no rows that can be used; a header line and at least one good row are needed"
MOST_CHARACTERS = 4_000_000  # in a row: else a quotation mark never closed takes the rest of a file into memory
MOST_LINES_AGAIN = 16  # of a row among lines read before, which would else be read as often as there are rows
BETWEEN = {".csv": "commas", ".tsv": "tabs"}  # the columns of a line
LINE_COLUMN = "text"  # of a file that has nothing but lines
OF_NUMPY_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d*)?""")
OF_NUMPY = re.compile(rf"\[\s*(?:{OF_NUMPY_ITEM.pattern})(?:\s+(?:{OF_NUMPY_ITEM.pattern}))+\s*\]")  # no commas
QUOTED = "in quotation marks, which may be a text's own or a program's: nobody can tell in .tsv; save it as .csv"


class RowError(DataError):
    """A row that cannot be used, the `line` it begins on, and what is wrong with it."""

    line = 0
    problem = ""

    @classmethod
    def of(cls, file: str | Path, line: int, problem: str) -> "RowError":
        error = cls(f"{file}, line {line}: {problem}")
        error.line, error.problem = line, problem
        return error


class NoRowsError(DataError):
    """A file has no row that can be used."""


Refuse = Callable[[RowError], None]


def stop(error: RowError) -> None:
    """What is done about a bad row, unless the reader is told otherwise."""
    raise error


@dataclass(frozen=True)
class Row:
    """One row, and the line it begins on (of Parquet and of a folder, the number of the row): `values` by column, of
    files that are no CSV or TSV whatever JSON has."""

    file: Path
    line: int
    values: dict[str, object]

    def __getitem__(self, column: str) -> str:
        value = _as_text(self.values.get(column))
        if value is None:
            bytes_there = isinstance(self.values.get(column), bytes)
            raise self.error(f"{'bytes, and ' if bytes_there else ''}no text or number in {column!r}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can say "\ud800"
            raise self.error(f"{column!r} is not valid Unicode; it holds half of a character") from error
        return value

    def text(self, column: str) -> str:
        text = self[column]
        if not text.strip():
            raise self.error("the text is empty")
        return text

    def label(self, column: str, problem_type: ProblemType) -> Label:
        value = self.values.get(column)
        if problem_type == MULTI:
            return self._several(column, several_in(value))
        if isinstance(value, list):
            raise self.error(f"{column!r} is a list; --problem-type {MULTI} reads such")
        label = self[column]
        if label.strip().lower() in ("", "nan"):  # as pandas writes what is missing
            raise self.error(f"no label in {column!r}; label the row, or leave it out")
        return label if problem_type == SINGLE else self._number(label, problem_type)

    def _several(self, column: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.error(f'no list of labels in {column!r}; write one as ["a", "b"], or [] where none applies')
        labels = tuple(Row(self.file, self.line, {column: label})[column] for label in value)
        for label in labels:
            if label.strip().lower() in ("", "nan"):
                raise self.error(f"{label!r} among the labels in {column!r}; leave it out")
        if len(set(labels)) < len(labels):
            raise self.error(f"a label twice in {column!r}; give the names of labels, not a 0 or 1 for each")
        return labels

    def _number(self, label: str, problem_type: ProblemType) -> float:
        try:
            number = float(label)
        except ValueError:
            raise self.error(f"the label {label!r}: {problem_type} needs numbers") from None
        if not math.isfinite(number) or (problem_type == RANKING and not 0 <= number <= 1):
            wanted = "numbers from 0 to 1" if problem_type == RANKING else "finite numbers"
            raise self.error(f"the label {label!r}: {problem_type} needs {wanted}")
        return number

    def error(self, problem: str) -> RowError:
        return RowError.of(self.file, self.line, problem)


def read_rows(file: Path, refuse: Refuse = stop) -> Iterator[Row]:
    """Streams the rows of a file, or of a folder that `datasets` has saved. CSV has RFC 4180 quoting; TSV has none, as
    GLUE's files have none.

    Args:
        refuse: is given the error of a row that does not parse. If it returns, the rows after that one are read.

    Raises:
        DataError: the file is missing or of another type, or its header is unusable.
    """
    kind = kind_of(file)
    if kind == PARQUET or file.is_dir():
        read = read_saved if file.is_dir() else read_parquet
        yield from _numbered(file, read(file, MOST_CHARACTERS), refuse)
        return
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{file}: expected a .csv, .tsv or .jsonl file, one of these with .gz, or a .parquet file")
    try:
        with _opened(file) as opened:
            lines = _bounded(opened)
            yield from _json_rows(file, lines, refuse) if kind == ".jsonl" else _table_rows(file, lines, kind, refuse)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: no gzip file, or a damaged one ({error}); pack it again") from error
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def read_lines(name: Path, lines: TextIO, refuse: Refuse) -> Iterator[Row]:
    """Streams a row for each line.

    Raises:
        DataError: there is none.
    """
    number = 0
    for number, line in enumerate(_bounded(lines), start=1):
        try:
            _check_line(line, len(line))
        except _Unreadable as error:
            refuse(RowError.of(name, number, str(error)))
            continue
        yield Row(name, number, {LINE_COLUMN: line.rstrip("\n")})
    if not number:
        raise DataError(f"{name}: no text on it; one a line is expected")


def kind_of(file: Path) -> str:
    """Its suffix; of one that is packed, the suffix before that."""
    name = file.name.lower().removesuffix(PACKED)
    return Path(name).suffix


def _opened(file: Path) -> TextIO:
    options: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    return gzip.open(file, "rt", **options) if file.suffix.lower() == PACKED else file.open(**options)


def _numbered(file: Path, rows: Iterable[dict[str, object] | str], refuse: Refuse) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        if isinstance(values, str):
            refuse(RowError.of(file, number, values))
        else:
            yield Row(file, number, values)


def _bounded(file: TextIO) -> Iterator[str]:
    """The lines of a file; of one that is too long no more than its beginning."""
    while line := file.readline(MOST_CHARACTERS + 1):
        yield line
        while len(line) > MOST_CHARACTERS and not line.endswith(("\n", "\r")):
            line = file.readline(MOST_CHARACTERS + 1)


class _Unreadable(csv.Error):
    """What is wrong with lines before their columns are looked at."""


def _check_line(line: str, characters: int) -> None:
    """
    Args:
        characters: of the row, so far.
    """
    if characters > MOST_CHARACTERS:
        raise _Unreadable(f"a row of more than {MOST_CHARACTERS:,} characters")
    if not line.isascii() and (bad := next((sign for sign in line if "\udc80" <= sign <= "\udcff"), None)):
        raise _Unreadable(f"not UTF-8 (byte 0x{ord(bad) - 0xDC00:x}); convert the file first")


def _json_rows(file: Path, lines: Iterable[str], refuse: Refuse) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            _check_line(line, len(line))
            values = json.loads(line)
        except _Unreadable as error:
            refuse(RowError.of(file, number, str(error)))
            continue
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
            refuse(RowError.of(file, number, f"not JSON ({getattr(error, 'msg', error)})"))
            continue
        if isinstance(values, dict):
            yield Row(file, number, values)
        else:
            refuse(RowError.of(file, number, "expected an object with named fields"))


def several_in(value: object) -> object:
    """The list that a field of CSV holds, written as JSON has it or, as pandas does, as Python or NumPy has it; else
    the value."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    if OF_NUMPY.fullmatch(value.strip()):  # which Python would read as one text
        return [ast.literal_eval(item) for item in OF_NUMPY_ITEM.findall(value)]
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            if isinstance(found := read(value.strip()), list):
                return found
    return value


def _as_text(value: object) -> str | None:
    """A text or a number; None for what can be neither a text nor a label."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) and math.isfinite(value) else None


class _Lines:
    """The lines of a file for `csv.reader`, which can go back: what a quotation mark never closed has swallowed are
    rows like any other. Time and memory stay in proportion to the file all the same."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self._row: list[str] = []  # the lines of the row being read
        self._characters = 0  # of these
        self._most: int | None = None  # of these
        self._again: deque[str] = deque()
        self.number = 0  # of the line read last

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._row) == self._most:
            raise StopIteration
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        self._characters += len(line)
        self.number += 1
        _check_line(line, self._characters)
        return line

    def begin_row(self) -> int:
        """Returns the number of the line that comes next."""
        self._row.clear()
        self._characters, self._most = 0, MOST_LINES_AGAIN if self._again else None
        return self.number + 1

    def go_back(self) -> None:
        """Lets the second line of the row being read come next."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= len(self._row) - 1


def _table_rows(file: Path, lines: Iterable[str], kind: str, refuse: Refuse) -> Iterator[Row]:
    csv.field_size_limit(MOST_CHARACTERS)
    source = _Lines(lines)
    if kind == ".csv":
        reader = csv.reader(source, strict=True)
    else:
        reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        header = next(filter(None, reader), [])
    except csv.Error as error:
        raise DataError(f"{file}: no header line that can be read ({error})") from error
    if kind == ".tsv" and any(map(_is_quoted, header)):
        raise DataError(f"{file}: column names {QUOTED}")
    if len(set(header)) < len(header):
        raise DataError(f"{file}: two columns have the same name, in {', '.join(map(repr, header))}")
    while True:
        line = source.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = str(error) if isinstance(error, _Unreadable) else f"not {kind[1:].upper()} ({error})"
            refuse(RowError.of(file, line, problem))
            source.go_back()
            continue
        if kind == ".tsv" and (any(map(_is_quoted, fields)) or (len(header) == 1 and any(map(_begins_quoted, fields)))):
            refuse(RowError.of(file, line, f"a field {QUOTED}"))
        elif len(fields) == len(header):
            yield Row(file, line, dict(zip(header, fields, strict=True)))
        elif fields:  # else an empty line
            refuse(RowError.of(file, line, f"expected {len(header)} columns, found {len(fields)}"))


def _begins_quoted(field: str) -> bool:
    """A line of a text that has several; where there are more columns than one their number tells."""
    return field.startswith('"') and field.count('"') % 2 == 1


def _is_quoted(field: str) -> bool:
    """As CSV has it; whether a text's own quotation marks or a program's, nobody can tell."""
    inner = field[1:-1]
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
