"""`predict`: a bundle's answers to texts or to a file of them, as JSON lines or as a table."""

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from hadskip_export.bulk.rows import (
    CHUNK,
    PROBABILITY,
    OnError,
    Record,
    answered,
    as_json,
    check_on_error,
    record_of,
)
from hadskip_export.data.columns import Columns, check_used, read_standard_input, read_texts
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.errors import DataError
from hadskip_export.support.files import replaced, resolved
from hadskip_export.support.progress import say
from hadskip_export.support.values import several
from hadskip_export.support.words import printable

STANDARD_INPUT = "-"


def predict(
    bundle: str | Path,
    texts: Sequence[Text] = (),
    *,
    input: str | Path | None = None,
    output: str | Path | None = None,
    on_error: OnError = "stop",
    force: bool = False,
    text_column: str | None = None,
    pair_column: str | None = None,
    **options: Any,
) -> Iterator[str]:
    """Gives a JSON line per input, in order: the fields of `Prediction` that are of the model's kind, `SHOWN`.

    Args:
        texts: what to classify; or
        input: the rows of a file of texts, read as they are needed; `-` for the lines of standard input. Every
            answer begins with the `line` its row begins on and the row's other columns, which are passed on as they
            are. One that is called as a field of the answers becomes `input_label`.
        output: a .jsonl or .csv file to write to instead, under that name only once all are written.
        on_error: what a bad row of the file does: `stop` raises its error; `skip` says it on stderr, goes on with the
            next row, and says at the end how many were left out.
        force: replace an `output` that exists.
        options: as for `Predictor.load`.

    Raises:
        DataError: see `read_texts`; nothing or an empty text to classify; `output` cannot be written. Whatever is
            raised, `output` is as it was.
        HadskipError: see `Predictor.load` and `Predictor.__call__`.
    """
    check_on_error(on_error)
    if isinstance(texts, tuple) and texts and all(isinstance(text, str) for text in texts):
        raise DataError("texts: a tuple of texts is one pair; give a list, of pairs as tuples")
    texts = several("texts", texts)
    if bool(texts) == (input is not None):
        raise DataError("give texts to classify, or --input, and not both")
    columns = Columns(text_column, pair_column)
    check_used(columns, input is not None and str(input) != STANDARD_INPUT, "--input")
    if on_error == "skip" and input is None:
        raise DataError("--on-error skip: goes with --input; leave it out")
    if force and output is None:
        raise DataError("--force: goes with --output; leave it out")
    if empty := next((number for number, text in enumerate(texts, start=1) if "" in _parts(text)), None):
        raise DataError(f"text {empty} is empty; leave it out")
    write = None if output is None else _writer(Path(output), input, force)
    if input is None:
        records = _of_texts(bundle, texts, options)
    else:
        records = _of_rows(bundle, input, columns, on_error, options)
    if write is None:
        return map(as_json, records)
    write(records)
    return iter(())


def _parts(text: Text) -> Sequence[str]:
    return [part.strip() for part in ((text,) if isinstance(text, str) else text)]


def _of_texts(bundle: str | Path, texts: Sequence[Text], options: Record) -> Iterator[Record]:
    with Predictor.load(bundle, **options) as predictor:
        yield from (record_of(predictor, prediction) for prediction in predictor(list(texts)))


def _of_rows(
    bundle: str | Path, input: str | Path, columns: Columns, on_error: OnError, options: Record
) -> Iterator[Record]:
    done = skipped = 0

    def refuse(error: DataError) -> None:
        nonlocal skipped
        if on_error == "stop":
            raise DataError(f"{error}; mend that row, or leave bad rows out with --on-error skip") from error
        skipped += 1
        say(f"skipped: {error}")

    from_standard_input = str(input) == STANDARD_INPUT
    rows = read_standard_input(refuse) if from_standard_input else read_texts(input, columns, refuse)
    name = "standard input" if from_standard_input else str(input)
    with Predictor.load(bundle, **options) as predictor:
        while chunk := list(itertools.islice(rows, CHUNK)):
            for found in answered(predictor, chunk, name, refuse):
                done += 1
                yield found
    if on_error == "skip":
        say(f"{done} rows done, {skipped} skipped")


def _write_lines(records: Iterable[Record], file: TextIO) -> None:
    file.writelines(as_json(record) + "\n" for record in records)


def _write_table(records: Iterable[Record], file: TextIO) -> None:
    """CSV, its columns those of the first row; of the probabilities there is a column for each class."""
    writer: csv.DictWriter[str] | None = None
    for record in records:
        row = {name: _cell(value) for name, value in record.items() if name not in ("probabilities", "layers")}
        row["layers"] = " ".join(map(str, record["layers"]))
        row |= {f"{PROBABILITY}{label}": repr(value) for label, value in record.get("probabilities", {}).items()}
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        if more := next((name for name in row if name not in writer.fieldnames), None):
            raise DataError(f"line {record['line']}: has {more!r}, which the first row has not; write to a .jsonl file")
        writer.writerow(row)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return printable(value) if isinstance(value, str) else as_json(value)


WRITERS: dict[str, Callable[[Iterable[Record], TextIO], None]] = {".jsonl": _write_lines, ".csv": _write_table}


def _writer(output: Path, input: str | Path | None, force: bool) -> Callable[[Iterable[Record]], None]:
    """What writes `output`; checks what can be checked before the work is done, for it may take hours."""
    target = resolved(output)  # a link stays a link
    write = WRITERS.get(output.suffix.lower())
    if target.exists() and not target.is_file():
        raise DataError(f"--output {output}: not a file; name a file, or leave --output out to print")
    if not target.parent.is_dir():
        raise DataError(f"--output {output}: no folder {output.parent}; make it first")
    if input is not None and target == Path(input).resolve():
        raise DataError(f"--output {output}: that is the input; name another file")
    if write is None:
        raise DataError(f"--output {output}: expected a name that ends with {' or '.join(WRITERS)}")
    if target.exists() and not force:
        raise DataError(f"--output {output}: exists already; name another file, or replace it with --force")

    def write_all(records: Iterable[Record]) -> None:
        with replaced(target) as part, part.open("w", encoding="utf-8", newline="") as file:
            write(records, file)

    return write_all
