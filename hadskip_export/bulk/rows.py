"""Answers as rows of a file: what of a prediction is told, beside the row's other columns."""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from hadskip_export.data.columns import TextRow
from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE, ProblemType
from hadskip_export.data.rows import Refuse, RowError
from hadskip_export.runtime.answers import Prediction
from hadskip_export.runtime.predictor import Predictor
from hadskip_export.support.errors import DataError
from hadskip_export.support.words import printable

Record = dict[str, Any]
OnError = Literal["stop", "skip"]
LINE = "line"
CHUNK = 1024  # inputs computed with one call
PROBABILITY = "probability_"  # what a table's columns of the classes begin with
SHOWN: dict[ProblemType, tuple[str, ...]] = {
    SINGLE: ("label", "probabilities"),
    MULTI: ("labels", "probabilities"),
    REGRESSION: ("score",),
    RANKING: ("score",),
}
ALWAYS = ("layers", "truncated")


def check_on_error(on_error: str) -> None:
    """
    Raises:
        DataError: something else than what `OnError` has.
    """
    if on_error not in get_args(OnError):
        raise DataError(f"on_error={on_error!r}: expected 'stop' or 'skip'")


def answered(
    predictor: Predictor, rows: Sequence[TextRow], name: str, refuse: Refuse, reserved: Sequence[str] = ()
) -> list[Record]:
    """Each row's line, its other columns under names that are none of ours, and its answer.

    Args:
        name: the file's, for errors.
        refuse: of a row with what the model does not know; see `data.rows.read_rows`.
        reserved: more names that are ours.
    """
    try:
        predictions = predictor([row.text for row in rows])
    except DataError:
        rows = list(_those_taken(predictor, rows, name, refuse))
        predictions = predictor([row.text for row in rows])
    found = []
    for row, prediction in zip(rows, predictions, strict=True):
        own = record_of(predictor, prediction)
        found.append({LINE: row.line, **_renamed(row.others, (LINE, *reserved, *own)), **own})
    return found


def record_of(predictor: Predictor, prediction: Prediction) -> Record:
    """The fields of `Prediction` that are of the model's kind, `SHOWN`."""
    return {name: getattr(prediction, name) for name in (*SHOWN[predictor.problem.type], *ALWAYS)}


def _renamed(others: Record, ours: Sequence[str]) -> Record:
    """The input's other columns, none called like ours or like another: answers may be asked about again."""
    taken, renamed = set(others), {}
    for name, value in others.items():
        new = name
        while new in ours or new.startswith(PROBABILITY) or (new != name and new in taken):
            new = f"input_{new}"
        taken.add(new)
        renamed[new] = value
    return renamed


def _those_taken(predictor: Predictor, rows: Sequence[TextRow], name: str, refuse: Refuse) -> Iterator[TextRow]:
    """All but the rows with what the model does not know, which are refused by their line."""
    for row in rows:
        try:
            predictor.tokenizer.encode([row.text])
        except DataError as error:
            refuse(RowError.of(name, row.line, str(error).partition(": ")[2]))
            continue
        yield row


def as_json(value: object) -> str:
    """A line of JSON; half of a character, which JSON can hold and UTF-8 cannot, stays an escape."""
    try:
        return printable(json.dumps(value, ensure_ascii=False, default=_of_parquet, allow_nan=False))
    except ValueError:  # a number that is none, or infinite, of which JSON has none
        return printable(json.dumps(_finite(value), ensure_ascii=False, default=_of_parquet))


def _finite(value: object) -> object:
    """With null in place of what is no finite number."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_parquet(value: object) -> str:
    """What JSON does not have: bytes in base64, and times and the like as they are written."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
