"""Labelled files: CSV, TSV and JSONL, packed with gzip or not, Parquet, and what `datasets` has saved, as rows of named
columns, streamed, each with its line number."""

import ast
import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hadskip_export.data.columnar import PARQUET, read_parquet, read_saved
from hadskip_export.data.problems import MULTI, RANKING, SCORES, SINGLE, Label, Problem, ProblemType
from hadskip_export.data.text import Text
from hadskip_export.support.errors import DataError

# Names by which a column is recognised, the likeliest first.
TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise", "question1", "question", "review", "content", "#1 string")
PAIR_COLUMNS = ("text_pair", "text2", "sentence2", "hypothesis", "question2", "#2 string")
SCORE_COLUMNS = ("score", "similarity", "relevance")  # beside those below, where a number is what is looked for
LABEL_COLUMNS = ("label", "labels", "gold_label", "target", "class", "category", "sentiment", "quality")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `None` means: find it by its name (and, for `pair`, do without)."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


PACKED = ".gz"
NO_ROWS = "no rows that can be used; a header line and at least one good row are needed"
ANY_COLUMNS = Columns()
MOST_CHARACTERS = 4_000_000  # in a row: else a quotation mark never closed takes the rest of a file into memory
MOST_LINES_AGAIN = 16  # of a row among lines read before, which would else be read as often as there are rows
BETWEEN = {".csv": "commas", ".tsv": "tabs"}  # the columns of a line
FIRST_OBJECTS = 100  # of a file without a header, such as JSONL: those among which a column must turn up

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


Refuse = Callable[[RowError], None]


def stop(error: RowError) -> None:
    """What is done about a bad row, unless the reader is told otherwise."""
    raise error


@dataclass(frozen=True)
class Examples:
    """Texts and their labels as the problem has them, in file order; no labels at all where the texts have none.
    `lines`: where each begins in the file; none if that is not known."""

    texts: list[Text]
    labels: Sequence[Label]
    lines: list[int] = field(default_factory=list, compare=False)
    problem_type: ProblemType = SINGLE

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> "Examples":
        lines = [self.lines[row] for row in rows] if self.lines else []
        labels = [self.labels[row] for row in rows] if self.labels else []
        return replace(self, texts=[self.texts[row] for row in rows], labels=labels, lines=lines)


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
            raise self.error(f"no text or number in {column!r}")
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
    """The list that a field of CSV holds, written as JSON has it or, as pandas does, as Python; else the value."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
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
        if kind == ".tsv" and any(map(_is_quoted, fields)):
            refuse(RowError.of(file, line, f"a field {QUOTED}"))
        elif len(fields) == len(header):
            yield Row(file, line, dict(zip(header, fields, strict=True)))
        elif fields:  # else an empty line
            refuse(RowError.of(file, line, f"expected {len(header)} columns, found {len(fields)}"))


def _is_quoted(field: str) -> bool:
    """As CSV has it; whether a text's own quotation marks or a program's, nobody can tell."""
    inner = field[1:-1]
    return len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")


class TextRow(NamedTuple):
    """A text (or pair), the line it begins on, and the row's other columns."""

    line: int
    text: Text
    others: dict[str, object]


def read_texts(file: str | Path, columns: Columns = ANY_COLUMNS, refuse: Refuse = stop) -> Iterator[TextRow]:
    """Streams the texts (or pairs) of a file.

    Args:
        refuse: as for `read_rows`; a row without a text, with an empty one, or with one that is not Unicode is bad too.

    Raises:
        DataError: see `read_rows`; also no such column, no column of a known name, no good row.
    """
    path = Path(file)
    rows = read_rows(path, refuse)
    first, texts = _find_text_among(path, rows, columns)
    good = False
    for row in itertools.chain(first, rows):
        try:
            found = texts.of(row)
        except RowError as error:
            refuse(error)
            continue
        good = True
        yield TextRow(row.line, found, texts.others(row))
    if not good:
        raise DataError(f"{path}: {NO_ROWS}")


def read_standard_input(refuse: Refuse = stop) -> Iterator[TextRow]:
    """Streams the texts on standard input, one a line.

    Raises:
        DataError: see `read_texts`.
    """
    name, number = Path("standard input"), 0
    opened = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape")
    try:
        for number, line in enumerate(_bounded(opened), start=1):
            row = Row(name, number, {"text": line.rstrip("\n")})
            try:
                _check_line(line, len(line))
                yield TextRow(number, row.text("text"), {})
            except _Unreadable as error:
                refuse(row.error(str(error)))
            except RowError as error:
                refuse(error)
    finally:
        opened.detach()  # else standard input would be closed with it
    if not number:
        raise DataError("standard input: no text on it; one a line is expected")


def _find_text_among(file: Path, rows: Iterator[Row], columns: Columns) -> tuple[list[Row], "_TextColumns"]:
    """The rows read until one had the columns, and `_find_text` of that one."""
    read: list[Row] = []
    for row in itertools.islice(rows, 1 if kind_of(file) in BETWEEN else FIRST_OBJECTS):
        read.append(row)
        with contextlib.suppress(DataError):
            return read, _find_text(row, columns)
    if not read:
        raise DataError(f"{file}: {NO_ROWS}")
    return read, _find_text(read[0], columns)  # raises


def read_examples(
    file: str | Path,
    columns: Columns = ANY_COLUMNS,
    known: Problem | None = None,
    *,
    problem_type: ProblemType | None = None,
    unlabelled: bool = False,
) -> Examples:
    """Reads texts (or pairs of texts) and their labels.

    Args:
        known: the labels there may be; any, if left out.
        problem_type: what the labels are; that of `known`, or several where the first row has a list, else one.
        unlabelled: a file in which no column looks like labels, and none is named, is read all the same.

    Raises:
        DataError: see `read_rows` and `check_labels`; also no such column, no column of a known name, no row.
    """
    path = Path(file)
    texts: list[Text] = []
    labels: list[Label] = []
    lines: list[int] = []
    kind = problem_type or (known.type if known else None)
    names = LABEL_COLUMNS if kind not in SCORES else LABEL_COLUMNS + SCORE_COLUMNS
    for row in read_rows(path):
        if not texts:
            named = _find_text(row, columns)
            has_labels = not unlabelled or columns.label or _like(row, names)
            label = _find(row, columns.label, names, "--label-column") if has_labels else None
            kind = kind or (MULTI if label and isinstance(several_in(row.values[label]), list) else SINGLE)
        texts.append(named.of(row))
        if label is not None:
            labels.append(row.label(label, kind or SINGLE))
        elif late := _like(row, names):
            raise row.error(f"has {late!r}, and the first row has no label; give all rows one, or none")
        lines.append(row.line)
    if not texts:
        raise DataError(f"{path}: {NO_ROWS}")
    examples = Examples(texts, labels, lines, kind or SINGLE)
    check_spelling(examples, path)
    if known is not None:
        check_labels(examples, known.labels, path)
    return examples


def names_in(label: Label) -> tuple[str, ...]:
    """The classes that a label names; none of a score."""
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()


def check_spelling(examples: Examples, file: Path) -> None:
    """
    Raises:
        DataError: two labels differ only in blanks, in capitals or in how a number is written.
    """
    seen: dict[str | float, tuple[str, int]] = {}
    for labels, line in zip(examples.labels, examples.lines, strict=False):
        for label in names_in(labels):
            other, where = seen.setdefault(_plainly(label), (label, line))
            if other != label:
                raise DataError(
                    f"{file}, line {line}: the labels {label!r} and {other!r} (line {where}) differ only in spelling;"
                    " write one of them everywhere"
                )


def _plainly(label: str) -> str | float:
    """The same for labels that mean the same; JSON's booleans are 0 and 1 elsewhere."""
    try:
        return float({"false": "0", "true": "1"}.get(label, label))
    except ValueError:
        return " ".join(label.casefold().split())


def check_labels(examples: Examples, known: tuple[str, ...], file: Path) -> None:
    """
    Raises:
        DataError: a row has a label that is not among `known`.
    """
    for row, labels in enumerate(examples.labels):
        if label := next((name for name in names_in(labels) if name not in known), None):
            place = f"line {examples.lines[row]}" if examples.lines else f"row {row + 1}"
            raise DataError(
                f"{file}, {place}: label {label!r} is not known; the model has {', '.join(known)},"
                " which the file must use, too"
            )


@dataclass(frozen=True)
class _TextColumns:
    """Where the rows of a file have their text and, of pairs, the second one."""

    text: str
    pair: str | None
    pair_names: tuple[str, ...]  # by which a JSONL file may turn out to have pairs after all

    def of(self, row: Row) -> Text:
        if self.pair is not None:
            return row.text(self.text), row.text(self.pair)
        if late := _like(row, self.pair_names):
            raise row.error(f"has {late!r}, and the first row has no second text; give all rows one, or none")
        return row.text(self.text)

    def others(self, row: Row) -> dict[str, object]:
        return {name: value for name, value in row.values.items() if name not in (self.text, self.pair)}


def _find_text(first: Row, columns: Columns) -> _TextColumns:
    """How to get the text, or the pair of texts, from the rows of a file, of which `first` is the first.

    Raises:
        DataError: a named column is not there, or none has a known name.
    """
    text = _find(first, columns.text, TEXT_COLUMNS, "--text-column")
    names = tuple(name for name in PAIR_COLUMNS if name != text.lower())
    has_pairs = columns.pair is not None or _like(first, names) is not None
    return _TextColumns(text, _find(first, columns.pair, names, "--pair-column") if has_pairs else None, names)


def _like(row: Row, known: tuple[str, ...]) -> str | None:
    """The row's first column of a known name that is not null."""
    return next((name for name, value in row.values.items() if value is not None and name.lower() in known), None)


def _find(first: Row, named: str | None, known: tuple[str, ...], option: str) -> str:
    have = ", ".join(map(repr, first.values))
    if named is not None:
        if named in first.values:
            return named
        raise DataError(f"{first.file}: no column {named!r} ({option}); it has {have}")
    by_lower = {name.lower(): name for name in first.values}
    for name in known:
        if name in by_lower:
            return by_lower[name]
    between = BETWEEN.get(kind_of(first.file))
    header = f"; its first line must name the columns, with {between} between them" if between else ""
    raise DataError(f"{first.file}: cannot tell which of {have} to use{header}; name it with {option}")
