"""`predict`: a bundle's answers to texts or to a file of them, as JSON lines."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hadskip_export.runtime.predictor import Predictor
from hadskip_export.runtime.tokenization import Text
from hadskip_export.tables import Columns, read_texts

CHUNK = 1024  # inputs held at a time


def predict(
    bundle: str | Path,
    texts: Sequence[Text] = (),
    *,
    input: str | Path | None = None,
    output: str | Path | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    **options: Any,
) -> Iterator[str]:
    """Yields a JSON line per input, in order: the fields of `Prediction`.

    Args:
        texts: what to classify; then
        input: the rows of a CSV, TSV or JSONL file, read as they are needed.
        output: write the lines there instead, under that name only once all are written, and yield nothing.
        options: as for `Predictor.load`.

    Raises:
        HadskipError: see `Predictor.load`, `Predictor.__call__` and `read_rows`.
    """
    from_file = read_texts(input, Columns(text_column, pair_column)) if input is not None else ()
    with Predictor.load(bundle, **options) as predictor:
        lines = _lines(predictor, itertools.chain(texts, from_file))
        if output is None:
            yield from lines
            return
        part = Path(f"{output}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
            os.replace(part, output)
        finally:
            part.unlink(missing_ok=True)


def _lines(predictor: Predictor, texts: Iterable[Text]) -> Iterator[str]:
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        for prediction in predictor(chunk):
            yield json.dumps(asdict(prediction), ensure_ascii=False)
