"""Rows of files that Apache Arrow reads: Parquet, and folders that `datasets` has saved."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hadskip_export.support.errors import DataError, first_line, optional_import

PARQUET = ".parquet"
STATE, SPLITS = "state.json", "dataset_dict.json"  # what a folder of `datasets` has, or one of several splits
ROWS = 256  # whose sizes are looked at together
PLAIN = (str, int, float, bool, type(None), list, dict, bytes)  # bytes are no text, and whoever asks for one is told
Values = dict[str, object]


def read_parquet(file: Path, most_characters: int) -> Iterator[Values | str]:
    """Streams the rows of a Parquet file, as values by column; of one with a larger text, what is wrong with it.

    Raises:
        DataError: missing, damaged, or two columns have the same name.
    """
    parquet: Any = optional_import("pyarrow.parquet", "parquet")
    with _failures_named(file, "as Parquet"), parquet.ParquetFile(file) as opened:
        names = _class_names(file, opened.schema_arrow)
        yield from _rows(opened.iter_batches(ROWS), names, most_characters)


def read_saved(folder: Path, most_characters: int) -> Iterator[Values | str]:
    """The same of a folder that `datasets` has saved (`Dataset.save_to_disk`).

    Raises:
        DataError: also no such folder, or one of several splits.
    """
    if (folder / SPLITS).is_file():
        splits = ", ".join(str(part) for part in sorted(folder.iterdir()) if part.is_dir())
        raise DataError(f"{folder}: has several splits; name one of them: {splits}")
    if not (folder / STATE).is_file():
        raise DataError(f"{folder}: a folder, and none that datasets has saved; name a file")
    arrow: Any = optional_import("pyarrow", "parquet")
    with _failures_named(folder, "as a folder of datasets"):
        for file in _saved_files(folder):
            with arrow.OSFile(str(file)) as source:
                opened = arrow.ipc.open_stream(source)
                yield from _rows(opened, _class_names(folder, opened.schema), most_characters)


def class_names(place: Path, column: str) -> tuple[str, ...]:
    """What a file or folder of either kind calls the classes of a column, by their numbers; none of another column."""
    if place.is_dir():
        arrow: Any = optional_import("pyarrow", "parquet")
        with _failures_named(place, "as a folder of datasets"), arrow.OSFile(str(_saved_files(place)[0])) as source:
            schema = arrow.ipc.open_stream(source).schema
    else:
        parquet: Any = optional_import("pyarrow.parquet", "parquet")
        with _failures_named(place, "as Parquet"):
            schema = parquet.read_schema(place)
    return tuple(_class_names(place, schema).get(column, ()))


def _saved_files(folder: Path) -> list[Path]:
    state = json.loads((folder / STATE).read_text())
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: its rows are chosen by a list of indices; save it with flatten_indices()")
    return [folder / Path(part["filename"]).name for part in state["_data_files"]]


def _rows(batches: Iterable[Any], names: dict[str, list[str]], most_characters: int) -> Iterator[Values | str]:
    compute: Any = optional_import("pyarrow.compute", "parquet")
    for large in batches:
        for start in range(0, large.num_rows, ROWS):
            batch = large.slice(start, ROWS)
            batch.validate(full=True)  # else Arrow follows whatever places a damaged file names, out of its memory
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            texts = [column for column in columns.values() if str(column.type) in ("string", "large_string")]
            sizes = [compute.binary_length(column).fill_null(0).to_pylist() for column in texts]
            for row in range(batch.num_rows):
                if sum(size[row] for size in sizes) > most_characters:
                    yield f"a row of more than {most_characters:,} characters"
                else:
                    yield {name: _plain(column[row].as_py(), names.get(name)) for name, column in columns.items()}


def _plain(value: object, names: list[str] | None) -> object:
    """What JSON would have, and bytes. `names`: of classes, whose numbers stand in the file."""
    if names is not None and isinstance(value, list):
        return [_plain(item, names) for item in value]
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None  # -1: nobody has labelled it
    return value if isinstance(value, PLAIN) else str(value)


def _class_names(file: Path, schema: Any) -> dict[str, list[str]]:
    """Of columns that `datasets` knows as classes, or as lists of them.

    Raises:
        DataError: two columns have the same name.
    """
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{file}: two columns have the same name, in {', '.join(map(repr, schema.names))}")
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})
    inner = {name: one.get("feature", one) for name, one in features.items() if isinstance(one, dict)}  # of lists
    return {name: one["names"] for name, one in inner.items() if one.get("_type") == "ClassLabel"}


@contextmanager
def _failures_named(place: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{place}: no such file") from None
    except Exception as error:  # Arrow has many kinds, and what it reads is anybody's
        raise DataError(f"{place}: cannot be read {kind} ({first_line(error)})") from error
