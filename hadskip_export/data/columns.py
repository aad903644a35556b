"""Which columns of a file hold what is asked for, and the texts, or pairs of texts, in them."""

import contextlib
import io
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hadskip_export.data.rows import (
    BETWEEN,
    LINE_COLUMN,
    NO_ROWS,
    NoRowsError,
    Refuse,
    Row,
    RowError,
    kind_of,
    read_lines,
    read_rows,
    stop,
)
from hadskip_export.data.text import Text
from hadskip_export.support.errors import DataError

# Names by which a column is recognised, the likeliest first.
ASKING = ("question", "query")  # beside another text, which is what it is about
ASKED = ("answer", "passage", "document", "context", "response")  # which may be such a text
TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise", "question1", *ASKING, "review", "content", "#1 string")
FIRST = {"sentence2": "sentence1", "hypothesis": "premise", "question2": "question1", "#2 string": "#1 string"}
PAIR_COLUMNS = ("text_pair", "text2", "sentence2", "hypothesis", "question2", "#2 string")
SCORE_COLUMNS = ("score", "similarity", "relevance")  # beside those below, where a number is what is looked for
LABEL_COLUMNS = ("label", "labels", "gold_label", "target", "class", "category", "sentiment", "quality")
FIRST_OBJECTS = 100  # of a file without a header, such as JSONL: those among which a column must turn up


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `None` means: find it by its name (and, for `pair`, do without)."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    @property
    def by_option(self) -> dict[str, str | None]:
        return {"--text-column": self.text, "--pair-column": self.pair, "--label-column": self.label}


ANY_COLUMNS = Columns()


def check_used(columns: Columns, has_file: bool, option: str = "--data") -> None:
    """
    Raises:
        DataError: columns are named, and no file that has any.
    """
    if not has_file and (named := next((name for name, column in columns.by_option.items() if column), None)):
        raise DataError(f"{named}: names a column of the file that {option} gives, and there is none; leave it out")


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
    first, texts = _among(path, rows, columns)
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
        raise NoRowsError(f"{path}: {NO_ROWS}")


def read_standard_input(refuse: Refuse = stop) -> Iterator[TextRow]:
    """Streams the texts on standard input, one a line.

    Raises:
        DataError: see `read_texts`; it is closed.
    """
    if sys.stdin is None:
        raise DataError("standard input is closed; give it lines, or name a file with --input")
    opened = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape")
    try:
        for row in read_lines(Path("standard input"), opened, refuse):
            try:
                yield TextRow(row.line, row.text(LINE_COLUMN), {})
            except RowError as error:
                refuse(error)
    finally:
        opened.detach()  # else standard input would be closed with it


def _among(file: Path, rows: Iterator[Row], columns: Columns) -> tuple[list[Row], "TextColumns"]:
    """The rows read until one had the columns, and `find_text` of that one."""
    read: list[Row] = []
    for row in itertools.islice(rows, 1 if kind_of(file) in BETWEEN else FIRST_OBJECTS):
        read.append(row)
        with contextlib.suppress(DataError):
            return read, find_text(row, columns)
    if not read:
        raise NoRowsError(f"{file}: {NO_ROWS}")
    return read, find_text(read[0], columns)  # raises


@dataclass(frozen=True)
class TextColumns:
    """Where the rows of a file have their text and, of pairs, the second one."""

    text: str
    pair: str | None
    pair_names: tuple[str, ...]  # by which a JSONL file may turn out to have pairs after all

    def of(self, row: Row) -> Text:
        if self.pair is not None:
            return row.text(self.text), row.text(self.pair)
        if late := like(row, self.pair_names):
            raise row.error(f"has {late!r}, and the first row has no second text; give all rows one, or none")
        return row.text(self.text)

    def others(self, row: Row) -> dict[str, object]:
        return {name: value for name, value in row.values.items() if name not in (self.text, self.pair)}


def find_text(first: Row, columns: Columns) -> TextColumns:
    """How to get the text, or the pair of texts, from the rows of a file, of which `first` is the first.

    Raises:
        DataError: a named column is not there, none has a known name, or a question stands beside a text.
    """
    text = find(first, columns.text, TEXT_COLUMNS, "--text-column")
    if columns.pair == text:
        raise DataError(f"--pair-column {text}: is the column of the text, too; name that of the second text")
    if columns.text is None and columns.pair is None and (asks := like(first, ASKING)):
        others = tuple(name for name in (*TEXT_COLUMNS, *ASKED) if name != text.lower())
        about = text if asks != text else like(first, others)
        if about is not None:
            raise DataError(
                f"{first.file}: {asks!r} and {about!r} may be a pair; say so with --text-column {asks} --pair-column"
                f" {about}, or name the one text with --text-column"
            )
    names = tuple(name for name in PAIR_COLUMNS if name != text.lower())
    has_pairs = columns.pair is not None or like(first, names) is not None
    pair = find(first, columns.pair, names, "--pair-column") if has_pairs else None
    started = FIRST.get(pair.lower()) if pair else None
    other = like(first, (started,)) if started else None
    if columns.text is None and columns.pair is None and other not in (None, text):
        raise DataError(
            f"{first.file}: {text!r} beside the pair {other!r} and {pair!r}; say which with --text-column, and"
            " --pair-column where it is the pair"
        )
    return TextColumns(text, pair, names)


def like(row: Row, known: tuple[str, ...]) -> str | None:
    """The row's first column of a known name that is not null."""
    return next((name for name, value in row.values.items() if value is not None and name.lower() in known), None)


def find(first: Row, named: str | None, known: tuple[str, ...], option: str) -> str:
    have = ", ".join(map(repr, first.values))
    if named is not None:
        if named in first.values:
            return named
        raise DataError(f"{first.file}: no column {named!r} ({option}); it has {have}")
    for name in known:
        if len(alike := [column for column in first.values if column.lower() == name]) > 1:
            raise DataError(f"{first.file}: {' and '.join(map(repr, alike))} differ only in capitals; say {option}")
        if alike:
            return alike[0]
    between = BETWEEN.get(kind_of(first.file))
    header = f"; its first line must name the columns, with {between} between them" if between else ""
    raise DataError(f"{first.file}: cannot tell which of {have} to use{header}; name it with {option}")
