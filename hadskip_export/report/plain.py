"""Results as JSON, for programs: `--json`, and the files that `demo` writes; and what pages for people need."""

import os
from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.support.errors import DataError, optional_import
from hadskip_export.support.words import printable


def to_json(result: Any) -> str:
    """A dataclass, or plain data, as JSON of many lines. A number that is none (NaN, infinity) is null there, and the
    name of a file that is no text has escapes."""
    plain = _printable(msgspec.to_builtins(result, enc_hook=_encode))
    return msgspec.json.format(msgspec.json.encode(plain), indent=1).decode()


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(name): _printable(item) for name, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list | tuple) else value


def check_page(file: Path) -> None:
    """Before there is anything to write there.

    Raises:
        DataError: nothing can be.
        EngineError: what `report.page` is made with is not installed.
    """
    parent = file.absolute().parent
    if not parent.is_dir():
        raise DataError(f"--report {file}: no folder {file.parent}; make it first")
    if file.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"--report {file}: no file can be written there; name one in another folder")
    for library in ("jinja2", "matplotlib"):
        optional_import(library, "plots")


def _encode(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON")
