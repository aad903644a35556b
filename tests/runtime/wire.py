"""ONNX files as protobuf's wire format has them, written by hand, and what the onnx library finds in them."""

from collections.abc import Iterator
from random import Random

import numpy as np
import onnx
from onnx import TensorProto


def varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def tensors(message) -> Iterator[TensorProto]:
    """Every tensor anywhere inside a protobuf message, by protobuf's own reflection."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                yield from tensors(part)


def oracle(model: onnx.ModelProto) -> set[str]:
    """The places outside a model that the onnx library sees."""
    return {
        entry.value
        for found in tensors(model)
        if onnx.external_data_helper.uses_external_data(found)
        for entry in found.external_data
        if entry.key == "location"
    }


class Writer:
    """Writes messages as protobuf allows: fields in any order, a message parted into two that are merged, fields that
    nobody knows. `odd`: also in ways that no writer of protobuf chooses, which readers may understand all the same."""

    def __init__(self, random: Random, odd: bool):
        self.random, self.odd = random, odd

    def number(self, value: int, bits: int = 64) -> bytes:
        if self.odd and self.random.random() < 0.02:
            content = varint(value | 1 << self.random.randrange(bits, 70))  # a reader may cut the upper bits off
            return content if self.random.random() < 0.5 else self.longer(varint(value))
        return varint(value)

    def longer(self, content: bytes) -> bytes:
        zeros = self.random.randrange(1, 4)
        return content[:-1] + bytes([content[-1] | 0x80, *[0x80] * (zeros - 1), 0])

    def field(self, number: int, content: bytes) -> bytes:
        return self.number(number << 3 | 2, 32) + self.number(len(content), 31) + content

    def message(self, message) -> bytes:
        parts = [part for field, value in message.ListFields() for part in self.parts(field, value)]
        if self.random.random() < 0.1:
            for kind, value in ((0, b"\x05"), (5, b"1234"), (1, b"12345678"), (2, b"\x03abc")):
                parts.append(varint(5000 << 3 | kind) + value)
        if self.odd and self.random.random() < 0.02:  # a group
            parts.append(varint(5004 << 3 | 3) + self.random.choice([b"", *parts]) + varint(5004 << 3 | 4))
        if self.random.random() < 0.3:
            self.random.shuffle(parts)
        return b"".join(parts)

    def parts(self, field, value) -> Iterator[bytes]:
        for one in value if field.is_repeated else [value]:
            if field.message_type is not None:
                if not field.is_repeated and self.random.random() < 0.3:
                    yield from self.halves(field.number, one)
                else:
                    yield self.field(field.number, self.message(one))
            elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
                content = one.encode() if isinstance(one, str) else one
                if self.random.random() < 0.1:
                    yield self.field(field.number, b"first" if self.random.random() < 0.5 else b"location")
                yield self.field(field.number, content)
            elif field.type == field.TYPE_FLOAT:
                yield varint(field.number << 3 | 5) + np.float32(one).tobytes()
            else:
                yield varint(field.number << 3) + varint(int(one) % 2**64)

    def halves(self, number: int, message) -> Iterator[bytes]:
        """The fields of a message in two messages of the same number."""
        first, second = type(message)(), type(message)()
        first.CopyFrom(message)
        second.CopyFrom(message)
        for field, _ in message.ListFields():
            (first if self.random.random() < 0.5 else second).ClearField(field.name)
        yield self.field(number, self.message(first))
        yield self.field(number, self.message(second))
