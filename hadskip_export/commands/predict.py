"""`predict`: a bundle's answers to texts or to a file of them, as JSON lines."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from hadskip_export.data.tables import Columns, Refuse, read_texts
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.support.errors import DataError
from hadskip_export.support.files import replaced
from hadskip_export.support.progress import say

OnError = Literal["stop", "skip"]
CHUNK = 1024  # inputs held at a time


def predict(
    bundle: str | Path,
    texts: Sequence[Text] = (),
    *,
    input: str | Path | None = None,
    output: str | Path | None = None,
    on_error: OnError = "stop",
    text_column: str | None = None,
    pair_column: str | None = None,
    **options: Any,
) -> Iterator[str]:
    """Gives a JSON line per input, in order: the fields of `Prediction`.

    Args:
        texts: what to classify; then
        input: the rows of a CSV, TSV or JSONL file, read as they are needed. With a file every line says first which
            `line` of it its row begins on (null for `texts`).
        output: write the lines there instead, under that name only once all are written, and give none.
        on_error: what a bad row of the file does: `stop` raises its error; `skip` says it on stderr, goes on with the
            next row, and says at the end how many were left out.
        options: as for `Predictor.load`.

    Raises:
        DataError: see `read_texts`; `output` cannot be written. Whatever is raised, `output` is as it was.
        HadskipError: see `Predictor.load` and `Predictor.__call__`.
    """
    if on_error not in get_args(OnError):
        raise DataError(f"on_error={on_error!r}: expected 'stop' or 'skip'")
    columns = Columns(text_column, pair_column)
    lines = _answers(bundle, texts, options, input=input, columns=columns, on_error=on_error)
    if output is None:
        return lines
    _write(lines, Path(output), input)
    return iter(())


def _answers(
    bundle: str | Path,
    texts: Sequence[Text],
    options: dict[str, Any],
    *,
    input: str | Path | None,
    columns: Columns,
    on_error: OnError,
) -> Iterator[str]:
    done = skipped = 0

    def refuse(error: DataError) -> None:
        nonlocal skipped
        if on_error == "stop":
            raise DataError(f"{error}; mend that row, or leave bad rows out with --on-error skip") from error
        skipped += 1
        say(f"skipped: {error}")

    inputs: Iterator[tuple[int | None, Text]] = ((None, text) for text in texts)
    if input is not None:
        inputs = itertools.chain(inputs, read_texts(input, columns, refuse))
    with Predictor.load(bundle, **options) as predictor:
        while chunk := list(itertools.islice(inputs, CHUNK)):
            try:
                predictions = predictor([text for _, text in chunk])
            except DataError:
                chunk = list(_those_taken(predictor, chunk, input, refuse))
                predictions = predictor([text for _, text in chunk])
            for (line, _), prediction in zip(chunk, predictions, strict=True):
                done += line is not None
                record = asdict(prediction) if input is None else {"line": line, **asdict(prediction)}
                yield json.dumps(record, ensure_ascii=False)
    if input is not None and on_error == "skip":
        say(f"{done} rows done, {skipped} skipped")


def _those_taken(
    predictor: Predictor, chunk: list[tuple[int | None, Text]], input: str | Path | None, refuse: Refuse
) -> Iterator[tuple[int | None, Text]]:
    """All but the rows with what the model does not know, which are refused by their line."""
    for line, text in chunk:
        try:
            predictor.tokenizer.encode([text])
        except DataError as error:
            if line is None:
                raise
            refuse(DataError(f"{input}, line {line}: {str(error).partition(': ')[2]}"))
            continue
        yield line, text


def _write(lines: Iterable[str], output: Path, input: str | Path | None) -> None:
    """Checks what can be checked before the work is done, for it may take hours."""
    target = output.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        raise DataError(f"--output {output}: not a file; name a file, or leave --output out to print")
    if not target.parent.is_dir():
        raise DataError(f"--output {output}: no folder {output.parent}; make it first")
    if input is not None and target == Path(input).resolve():
        raise DataError(f"--output {output}: that is the input; name another file")
    with replaced(target) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
