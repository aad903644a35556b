"""Results as JSON, for programs: `--json`, and the files that `demo` writes; and what pages for people need."""

from pathlib import Path
from typing import Any

import msgspec

from hadskip_export.support.errors import optional_import


def to_json(result: Any) -> str:
    """A dataclass, or plain data, as JSON of many lines. A number that is none (NaN, infinity) is null there."""
    return msgspec.json.format(msgspec.json.encode(result, enc_hook=_encode), indent=1).decode()


def need_pages() -> None:
    """
    Raises:
        EngineError: what `report.page` is made with is not installed.
    """
    for library in ("jinja2", "matplotlib"):
        optional_import(library, "plots")


def _encode(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON")
