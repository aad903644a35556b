"""Labelled files: CSV, TSV and JSONL as rows of named columns, streamed, each with its line number."""

import contextlib
import csv
import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hadskip_export.data.text import Text
from hadskip_export.support.errors import DataError

# Names by which a column is recognised, the likeliest first.
TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise", "question1", "question", "review", "content", "#1 string")
PAIR_COLUMNS = ("text_pair", "text2", "sentence2", "hypothesis", "question2", "#2 string")
LABEL_COLUMNS = ("label", "labels", "gold_label", "target", "class", "category", "sentiment", "quality")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `None` means: find it by its name (and, for `pair`, do without)."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


NO_ROWS = "no rows that can be used; a header line and at least one good row are needed"
ANY_COLUMNS = Columns()
MOST_CHARACTERS = 4_000_000  # in a field: else a quotation mark never closed takes the rest of a file into memory
FIRST_OBJECTS = 100  # of a JSONL file, which has no header: those among which a column must turn up

Refuse = Callable[[DataError], None]


def stop(error: DataError) -> None:
    """What is done about a bad row, unless the reader is told otherwise."""
    raise error


@dataclass(frozen=True)
class Examples:
    """Texts and the names of their labels, in file order; no labels at all where the texts have none. `lines`: where
    each begins in the file; none if that is not known."""

    texts: list[Text]
    labels: list[str]
    lines: list[int] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> "Examples":
        lines = [self.lines[row] for row in rows] if self.lines else []
        labels = [self.labels[row] for row in rows] if self.labels else []
        return Examples([self.texts[row] for row in rows], labels, lines)


@dataclass(frozen=True)
class Row:
    """One row, and the line it begins on: `values` by column, None where a JSON value can be neither a text nor a
    label."""

    file: Path
    line: int
    values: dict[str, str | None]

    def __getitem__(self, column: str) -> str:
        value = self.values.get(column)
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

    def label(self, column: str) -> str:
        label = self[column]
        if label.strip().lower() in ("", "nan"):  # as pandas writes what is missing
            raise self.error(f"no label in {column!r}; label the row, or leave it out")
        return label

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.file}, line {self.line}: {problem}")


def read_rows(file: Path, refuse: Refuse = stop) -> Iterator[Row]:
    """Streams the rows of a file. CSV has RFC 4180 quoting; TSV has none, as GLUE's files have none.

    Args:
        refuse: is given the error of a row that does not parse. If it returns, the rows after that one are read.

    Raises:
        DataError: the file is missing, of another type or not UTF-8, or its header is unusable.
    """
    kind = file.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{file}: expected a .csv, .tsv or .jsonl file")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from _json_rows(file, lines, refuse) if kind == ".jsonl" else _table_rows(file, lines, kind, refuse)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        line, byte = _bad_byte(file)
        raise DataError(f"{file}, line {line}: not UTF-8 ({error.reason} at byte {byte}); convert it first") from error
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _json_rows(file: Path, lines: Iterable[str], refuse: Refuse) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
            refuse(DataError(f"{file}, line {number}: not JSON ({getattr(error, 'msg', error)})"))
            continue
        if isinstance(values, dict):
            yield Row(file, number, {key: _as_text(value) for key, value in values.items()})
        else:
            refuse(DataError(f"{file}, line {number}: expected an object with named fields"))


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) and math.isfinite(value) else None


class _Lines:
    """The lines of a file for `csv.reader`, which can go back: what a quotation mark never closed has swallowed are
    rows like any other."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self._row: list[str] = []  # the lines of the row being read
        self._again: deque[str] = deque()
        self.number = 0  # of the line read last

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        self.number += 1
        return line

    def begin_row(self) -> int:
        """Returns the number of the line that comes next."""
        self._row.clear()
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
    if len(set(header)) < len(header):
        raise DataError(f"{file}: two columns have the same name, in {', '.join(map(repr, header))}")
    while True:
        line = source.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            refuse(DataError(f"{file}, line {line}: not {kind[1:].upper()} ({error})"))
            source.go_back()
            continue
        if len(fields) == len(header):
            yield Row(file, line, dict(zip(header, fields, strict=True)))
        elif fields:  # else an empty line
            refuse(DataError(f"{file}, line {line}: expected {len(header)} columns, found {len(fields)}"))


def _bad_byte(file: Path) -> tuple[int, int]:
    """Line, from 1, and offset of the first byte that is not UTF-8, without holding more than a line."""
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, offset + error.start
            offset += len(line)
    return 1, 0


def read_texts(file: str | Path, columns: Columns = ANY_COLUMNS, refuse: Refuse = stop) -> Iterator[tuple[int, Text]]:
    """Streams the texts (or pairs) of a file, each with the line it begins on.

    Args:
        refuse: as for `read_rows`; a row without a text, with an empty one, or with one that is not Unicode is bad too.

    Raises:
        DataError: see `read_rows`; also no such column, no column of a known name, no good row.
    """
    path = Path(file)
    rows = read_rows(path, refuse)
    first, text = _find_text_among(path, rows, columns)
    good = False
    for row in itertools.chain(first, rows):
        try:
            found = text(row)
        except DataError as error:
            refuse(error)
            continue
        good = True
        yield row.line, found
    if not good:
        raise DataError(f"{path}: {NO_ROWS}")


def _find_text_among(file: Path, rows: Iterator[Row], columns: Columns) -> tuple[list[Row], Callable[[Row], Text]]:
    """The rows read until one had the columns, and `find_text` of that one."""
    read: list[Row] = []
    for row in itertools.islice(rows, FIRST_OBJECTS if file.suffix.lower() == ".jsonl" else 1):
        read.append(row)
        with contextlib.suppress(DataError):
            return read, find_text(row, columns)
    if not read:
        raise DataError(f"{file}: {NO_ROWS}")
    return read, find_text(read[0], columns)  # raises


def read_examples(
    file: str | Path,
    columns: Columns = ANY_COLUMNS,
    known: tuple[str, ...] | None = None,
    unlabelled: bool = False,
) -> Examples:
    """Reads texts (or pairs of texts) and their labels.

    Args:
        known: the labels there may be; any, if left out.
        unlabelled: a file in which no column looks like labels, and none is named, is read all the same.

    Raises:
        DataError: see `read_rows` and `check_labels`; also no such column, no column of a known name, no row.
    """
    path = Path(file)
    texts: list[Text] = []
    labels: list[str] = []
    lines: list[int] = []
    for row in read_rows(path):
        if not texts:
            text = find_text(row, columns)
            has_labels = not unlabelled or columns.label or _like(row, LABEL_COLUMNS)
            label = _find(row, columns.label, LABEL_COLUMNS, "--label-column") if has_labels else None
        texts.append(text(row))
        if label is not None:
            labels.append(row.label(label))
        elif late := _like(row, LABEL_COLUMNS):
            raise row.error(f"has {late!r}, and the first row has no label; give all rows one, or none")
        lines.append(row.line)
    if not texts:
        raise DataError(f"{path}: {NO_ROWS}")
    examples = Examples(texts, labels, lines)
    check_spelling(examples, path)
    if known is not None:
        check_labels(examples, known, path)
    return examples


def check_spelling(examples: Examples, file: Path) -> None:
    """
    Raises:
        DataError: two labels differ only in blanks, in capitals or in how a number is written.
    """
    seen: dict[str | float, tuple[str, int]] = {}
    for label, line in zip(examples.labels, examples.lines, strict=False):
        other, where = seen.setdefault(_plainly(label), (label, line))
        if other != label:
            raise DataError(
                f"{file}, line {line}: the labels {label!r} and {other!r} (line {where}) differ only in spelling; write"
                " one of them everywhere"
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
    for row, label in enumerate(examples.labels):
        if label not in known:
            place = f"line {examples.lines[row]}" if examples.lines else f"row {row + 1}"
            raise DataError(
                f"{file}, {place}: label {label!r} is not known; the model has {', '.join(known)},"
                " which the file must use, too"
            )


def find_text(first: Row, columns: Columns) -> Callable[[Row], Text]:
    """How to get the text, or the pair of texts, from the rows of a file, of which `first` is the first.

    Raises:
        DataError: a named column is not there, or none has a known name.
    """
    text = _find(first, columns.text, TEXT_COLUMNS, "--text-column")
    others = tuple(name for name in PAIR_COLUMNS if name != text.lower())
    if columns.pair is None and _like(first, others) is None:
        return partial(_text_alone, text, others)
    pair = _find(first, columns.pair, others, "--pair-column")
    return lambda row: (row.text(text), row.text(pair))


def _text_alone(column: str, pair_columns: tuple[str, ...], row: Row) -> str:
    """A row's text in a file without pairs, of which a JSONL file may turn out to be none."""
    if late := _like(row, pair_columns):
        raise row.error(f"has {late!r}, and the first row has no second text; give all rows one, or none")
    return row.text(column)


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
    raise DataError(f"{first.file}: cannot tell which of {have} to use; name it with {option}")
