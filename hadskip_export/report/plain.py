"""Results as JSON, for programs: `--json`, and the files that `demo` writes; and what pages for people need."""

from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.support.errors import optional_import
from hadskip_export.support.files import check_place
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
        DataError: see `check_place`.
        EngineError: what `report.page` is made with is not installed.
    """
    check_place(file, "--report")
    for library in ("jinja2", "matplotlib"):
        optional_import(library, "plots")


def _encode(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON")
