"""What an ONNX file says of itself, read without the onnx library: what it takes and gives, and where its tensors lie.

Only the fields on the way there are decoded (protobuf wire format, onnx.proto). An encoding that no writer of protobuf
chooses is refused, not interpreted: readers differ in what they make of one, and a file that an engine sees must not be
hidden from us.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hadskip_export.support.errors import BundleError
from hadskip_export.support.reading import opened

# message -> {field number: message of that field}. A field that protobuf merges when it comes twice is walked twice.
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
WALK = {
    "model": {7: "main graph", 20: "training", 25: "function"},
    "main graph": _GRAPH | {11: "input", 12: "output"},
    "graph": _GRAPH,
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
_NAME, _TYPE_TO_AXES = 1, (2, 1, 2, 1)  # of an input or output: type, tensor_type, shape, dim
_KEY, _VALUE = 1, 2  # of an entry of external data
MOST_FIELDS = 5_000_000  # decoded: some seconds; the graphs of BERT-large with six engines have a tenth of them
MOST_DEPTH = 100  # of messages, as protobuf has it
_MOST_TAG = 1 << 32  # a field's number has 29 bits, its wire type 3
_MOST_VALUE = 1 << 64


@dataclass(frozen=True)
class Graph:
    """
    Args:
        locations: the `location` of every tensor kept outside the file.
        inputs: names, in order.
        output_axes: how many axes each output says it has, in order.
        fields: so many were decoded to know this.
    """

    locations: frozenset[str]
    inputs: tuple[str, ...]
    output_axes: tuple[int, ...]
    fields: int


def read_graph(file: Path, most_fields: int = MOST_FIELDS) -> Graph:
    """
    Raises:
        BundleError: not an ONNX file, a truncated one, one of more than `most_fields` fields, or an encoding that no
            writer of protobuf chooses.
    """
    try:
        with (
            opened(file) as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            return _Walk(view, most_fields).graph()
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{file}: not a readable ONNX file ({error}); build the bundle again") from error


class _Walk:
    """One way through a file. `most_fields`: see `read_graph`."""

    def __init__(self, view: memoryview, most_fields: int):
        self._view, self._most_fields = view, most_fields
        self._fields_read = 0
        self._locations: set[str] = set()
        self._inputs: list[str] = []
        self._output_axes: list[int] = []

    def graph(self) -> Graph:
        self._message("model", 0, len(self._view), 1)
        return Graph(frozenset(self._locations), tuple(self._inputs), tuple(self._output_axes), self._fields_read)

    def _message(self, message: str, start: int, end: int, depth: int) -> None:
        if depth > MOST_DEPTH:
            raise ValueError(f"messages nested deeper than {MOST_DEPTH}")
        if message == "external data":
            entry = {number: self._text(low, high) for number, low, high in self._fields(start, end)}
            if entry.get(_KEY) == "location":
                self._locations.add(entry.get(_VALUE, ""))
        elif message == "input":
            names = [self._text(low, high) for number, low, high in self._fields(start, end) if number == _NAME]
            self._inputs.append(names[-1] if names else "")
        elif message == "output":
            self._output_axes.append(self._count(_TYPE_TO_AXES, start, end))
        else:
            inner = WALK[message]
            for number, low, high in self._fields(start, end):
                if number in inner:
                    self._message(inner[number], low, high, depth + 1)

    def _count(self, path: tuple[int, ...], start: int, end: int) -> int:
        """How often the last field of `path` comes, the others in turn leading to it."""
        first, *rest = path
        found = [(low, high) for number, low, high in self._fields(start, end) if number == first]
        return sum(self._count(tuple(rest), *place) for place in found) if rest else len(found)

    def _text(self, start: int, end: int) -> str:
        return bytes(self._view[start:end]).decode()

    def _fields(self, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The length-delimited fields of a message as (number, start, end) of their content."""
        while position < end:
            self._fields_read += 1
            if self._fields_read > self._most_fields:
                raise ValueError(f"more than {self._most_fields:,} fields")
            tag, position = self._number(position, _MOST_TAG)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise ValueError("a field of the number 0")
            if kind == 0:
                _, position = self._number(position, _MOST_VALUE)
            elif kind == 1:
                position += 8
            elif kind == 5:
                position += 4
            elif kind == 2:
                size, position = self._number(position, _MOST_VALUE)
                if position + size > end:
                    raise ValueError("a field reaches past the end")
                yield number, position, position + size
                position += size
            else:
                raise ValueError(f"unknown wire type {kind}")
        if position != end:
            raise ValueError("a field reaches past the end")

    def _number(self, position: int, most: int) -> tuple[int, int]:
        """A number below `most`, and where the next thing begins."""
        value = shift = 0
        while True:
            byte = self._view[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if value >= most or (byte == 0 and shift):  # a reader may cut it off; a writer adds no zeros
                raise ValueError("a number of too many bytes")
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                raise ValueError("a number of too many bytes")
