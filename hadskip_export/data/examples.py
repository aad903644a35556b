"""Labelled texts, and what their labels must be."""

import contextlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from hadskip_export.data.columnar import PARQUET, class_names
from hadskip_export.data.columns import ANY_COLUMNS, LABEL_COLUMNS, SCORE_COLUMNS, Columns, find, find_text, like
from hadskip_export.data.problems import MULTI, SCORES, SINGLE, Label, Problem, ProblemType
from hadskip_export.data.rows import NO_ROWS, NoRowsError, kind_of, read_rows, several_in
from hadskip_export.data.text import Text
from hadskip_export.support.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Texts and their labels as the problem has them, in file order; no labels at all where the texts have none.
    `lines`: where each begins in the file; none if that is not known. `classes`: in the order of their numbers, where
    the file has such."""

    texts: list[Text]
    labels: Sequence[Label]
    lines: list[int] = field(default_factory=list, compare=False)
    problem_type: ProblemType = SINGLE
    classes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> "Examples":
        lines = [self.lines[row] for row in rows] if self.lines else []
        labels = [self.labels[row] for row in rows] if self.labels else []
        return replace(self, texts=[self.texts[row] for row in rows], labels=labels, lines=lines)


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
        DataError: see `read_rows`, `check_spelling` and `check_labels`; a 0 or 1 in place of each label; also no
            such column, no column of a known name, no row.
    """
    path = Path(file)
    texts: list[Text] = []
    labels: list[Label] = []
    lines: list[int] = []
    kind = problem_type or (known.type if known else None)
    names = LABEL_COLUMNS if kind not in SCORES else LABEL_COLUMNS + SCORE_COLUMNS
    for row in read_rows(path):
        if not texts:
            named = find_text(row, columns)
            has_labels = not unlabelled or columns.label or like(row, names)
            label = find(row, columns.label, names, "--label-column") if has_labels else None
            kind = kind or (MULTI if label and isinstance(several_in(row.values[label]), list) else SINGLE)
        texts.append(named.of(row))
        if label is not None:
            labels.append(row.label(label, kind or SINGLE))
        elif late := like(row, names):
            raise row.error(f"has {late!r}, and the first row has no label; give all rows one, or none")
        lines.append(row.line)
    if not texts:
        raise NoRowsError(f"{path}: {NO_ROWS}")
    has_numbers = path.is_dir() or kind_of(path) == PARQUET
    classes = class_names(path, label) if label is not None and has_numbers else ()
    examples = Examples(texts, labels, lines, kind or SINGLE, classes)
    check_spelling(examples, path)
    may_be_marks = not unlabelled and (known is None or set(known.labels) != {"0", "1"})
    if examples.problem_type == MULTI and may_be_marks and _are_marks([names_in(label) for label in labels]):
        raise DataError(f"{path}: rows of the labels 0 and 1; give the names of labels, not a 0 or 1 for each")
    if known is not None:
        check_labels(examples, known.labels, path)
    return examples


def names_in(label: Label) -> tuple[str, ...]:
    """The classes that a label names; none of a score."""
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()


def _are_marks(rows: Sequence[tuple[str, ...]]) -> bool:
    """Whether rows have a 0 or 1 for each label, whose names they so do not say."""
    return any(len(row) > 1 for row in rows) and {_plainly(name) for row in rows for name in row} <= {0, 1}


def check_spelling(examples: Examples, file: Path) -> None:
    """
    Raises:
        DataError: two labels differ only in blanks, in capitals or in how a number is written.
    """
    seen: dict[str | Decimal, tuple[str, int]] = {}
    for labels, line in zip(examples.labels, examples.lines, strict=False):
        for label in names_in(labels):
            other, where = seen.setdefault(_plainly(label), (label, line))
            if other != label:
                raise DataError(
                    f"{file}, line {line}: the labels {label!r} and {other!r} (line {where}) differ only in spelling;"
                    " write one of them everywhere"
                )


def _plainly(label: str) -> str | Decimal:
    """The same for labels that mean the same, or look it; JSON's booleans are 0 and 1 elsewhere."""
    with contextlib.suppress(InvalidOperation):
        number = Decimal({"false": "0", "true": "1"}.get(label, "no number" if "_" in label else label))
        if number.is_finite():
            return number
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
    return " ".join(seen.casefold().split())


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
