"""Finds the files an ONNX file refers to, without the onnx library.

External data is a file name inside the model, so a model can point anywhere. Loading a bundle checks every such name
before an engine reads it. Only the fields on the way to those names are decoded (protobuf wire format, onnx.proto);
everything else, weights included, is stepped over.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from hadskip_export.support.errors import BundleError

EXTERNAL_DATA_ABOVE = 1_800_000_000  # bytes of a file with its weights inside; a protobuf file ends at 2 GiB

# message -> {field number: message of that field}. Tensors end the walk: their field 13 holds key/value entries.
_WALK = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA = 13


def external_data_files(file: Path) -> set[str]:
    """The `location` of every tensor kept outside `file`.

    Raises:
        BundleError: not an ONNX file, or a truncated one.
    """
    try:
        with (
            file.open("rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            return set(_locations(view, 0, len(view), "model"))
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{file}: not a readable ONNX file ({error}); build the bundle again") from error


def _locations(view: memoryview, start: int, end: int, message: str) -> Iterator[str]:
    for number, low, high in _fields(view, start, end):
        if message == "tensor":
            if number == _EXTERNAL_DATA:
                entry = {n: bytes(view[a:b]).decode() for n, a, b in _fields(view, low, high)}
                if entry.get(1) == "location":
                    yield entry.get(2, "")
        elif number in _WALK[message]:
            yield from _locations(view, low, high, _WALK[message][number])


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields of a message as (number, start, end) of their content."""
    while position < end:
        tag, position = _varint(view, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(view, position)
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        elif kind == 2:
            size, position = _varint(view, position)
            if position + size > end:
                raise ValueError("a field reaches past the end")
            yield tag >> 3, position, position + size
            position += size
        else:
            raise ValueError(f"unknown wire type {kind}")
    if position != end:
        raise ValueError("a field reaches past the end")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
