"""Labelled files: CSV, TSV and JSONL as rows of named columns, streamed, each with its line number."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from hadskip_export.errors import DataError
from hadskip_export.runtime.tokenization import Text

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


NO_ROWS = "no rows; a header line and at least one row are needed"
ANY_COLUMNS = Columns()


@dataclass(frozen=True)
class Examples:
    """Texts and the names of their labels, in file order."""

    texts: list[Text]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> "Examples":
        return Examples([self.texts[row] for row in rows], [self.labels[row] for row in rows])


@dataclass(frozen=True)
class Row:
    """One row: `values` by column, None where a JSON value can be neither a text nor a label."""

    file: Path
    line: int
    values: dict[str, str | None]

    def __getitem__(self, column: str) -> str:
        value = self.values.get(column)
        if value is None:
            raise DataError(f"{self.file}, line {self.line}: no text or number in {column!r}")
        return value


def read_rows(file: Path) -> Iterator[Row]:
    """Streams the rows of a file. CSV has RFC 4180 quoting; TSV has none, as GLUE's files have none.

    Raises:
        DataError: the file is missing, of another type, not UTF-8, or a line does not parse.
    """
    kind = file.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{file}: expected a .csv, .tsv or .jsonl file")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from _json_rows(file, lines) if kind == ".jsonl" else _delimited_rows(file, lines, kind)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error.reason} at byte {_bad_byte(file)}); convert it first") from error
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _json_rows(file: Path, lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise DataError(f"{file}, line {number}: expected an object with named fields")
        yield Row(file, number, {key: _as_text(value) for key, value in values.items()})


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) else None


def _delimited_rows(file: Path, lines: TextIO, kind: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    if kind == ".csv":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{file}: two columns have the same name, in {', '.join(map(repr, header))}")
        for fields in reader:
            if not fields:  # an empty line
                continue
            if len(fields) != len(header):
                raise DataError(f"{file}, line {reader.line_num}: expected {len(header)} columns, found {len(fields)}")
            yield Row(file, reader.line_num, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from error


def _bad_byte(file: Path) -> int:
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def read_texts(file: str | Path, columns: Columns = ANY_COLUMNS) -> Iterator[Text]:
    """Streams the texts (or pairs) of a file; see `read_examples` for what it raises."""
    text = None
    for row in read_rows(Path(file)):
        text = text or find_text(row, columns)
        yield text(row)
    if text is None:
        raise DataError(f"{file}: {NO_ROWS}")


def read_examples(file: str | Path, columns: Columns = ANY_COLUMNS, known: tuple[str, ...] | None = None) -> Examples:
    """Reads texts (or pairs of texts) and their labels.

    Args:
        known: the labels there may be; any, if left out.

    Raises:
        DataError: see `read_rows` and `check_labels`; also no such column, no column of a known name, no row.
    """
    path = Path(file)
    texts: list[Text] = []
    labels: list[str] = []
    for row in read_rows(path):
        if not texts:
            text = find_text(row, columns)
            label = _find(row, columns.label, LABEL_COLUMNS, "--label-column")
        texts.append(text(row))
        labels.append(row[label])
    if not texts:
        raise DataError(f"{path}: {NO_ROWS}")
    examples = Examples(texts, labels)
    if known is not None:
        check_labels(examples, known, path)
    return examples


def check_labels(examples: Examples, known: tuple[str, ...], file: Path) -> None:
    """
    Raises:
        DataError: a row has a label that is not among `known`.
    """
    for row, label in enumerate(examples.labels, start=1):
        if label not in known:
            raise DataError(f"{file}, row {row}: label {label!r} is not known; the model has {', '.join(known)}")


def find_text(first: Row, columns: Columns) -> Callable[[Row], Text]:
    """How to get the text, or the pair of texts, from the rows of a file, of which `first` is the first.

    Raises:
        DataError: a named column is not there, or none has a known name.
    """
    text = _find(first, columns.text, TEXT_COLUMNS, "--text-column")
    if columns.pair is None and not any(name.lower() in PAIR_COLUMNS for name in first.values):
        return lambda row: row[text]
    pair = _find(first, columns.pair, PAIR_COLUMNS, "--pair-column")
    return lambda row: (row[text], row[pair])


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
