"""A GGUF file taken apart so that it can be damaged in places that matter, and put together again."""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field

STRING, ARRAY = 8, 9
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass
class Key:
    """value: what stands after the value type, undecoded; arrays are decoded into items on demand."""

    name: bytes
    type: int
    value: bytes


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    type: int
    data: bytes
    offset_shift: int = 0


@dataclass
class Content:
    version: int
    keys: list[Key]
    tensors: list[Tensor]
    alignment: int = 32
    marks: list[tuple[int, int]] = field(default_factory=list)
    """Places of numbers in the head of what bytes_of() made last: (offset, width)."""

    def copy(self) -> Content:
        return Content(self.version, list(map(copy.copy, self.keys)), list(map(_copied, self.tensors)), self.alignment)

    def key(self, name: str) -> Key | None:
        return next((key for key in self.keys if key.name == name.encode()), None)

    def to_bytes(self) -> bytes:
        """A file whose counts and lengths are right, whatever the values are."""
        marks = self.marks = [(4, 4), (8, 8), (16, 8)]
        head = bytearray(struct.pack("<4sIQQ", b"GGUF", self.version, len(self.tensors), len(self.keys)))
        for key in self.keys:
            marks.append((len(head), 8))
            head += struct.pack("<Q", len(key.name)) + key.name
            marks.append((len(head), 4))
            head += struct.pack("<I", key.type)
            if key.type == ARRAY:
                marks += [(len(head), 4), (len(head) + 4, 8), (len(head) + 12, 8)]
            elif key.type == STRING:
                marks.append((len(head), 8))
            elif key.value:
                marks.append((len(head), len(key.value)))
            head += key.value
        offset = 0
        alignment = self.alignment
        for tensor in self.tensors:
            marks.append((len(head), 8))
            head += struct.pack("<Q", len(tensor.name)) + tensor.name
            marks.append((len(head), 4))
            head += struct.pack("<I", len(tensor.dims))
            for size in tensor.dims:
                marks.append((len(head), 8))
                head += struct.pack("<Q", size % 2**64)
            marks += [(len(head), 4), (len(head) + 4, 8)]
            head += struct.pack("<IQ", tensor.type, (offset + tensor.offset_shift) % 2**64)
            offset += -(-len(tensor.data) // alignment) * alignment
        head += bytes(-len(head) % alignment)
        parts = [bytes(head)]
        for tensor in self.tensors:
            parts += [tensor.data, bytes(-len(tensor.data) % alignment)]
        return b"".join(parts)


def _copied(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, list(tensor.dims), tensor.type, tensor.data)


def taken_apart(data: bytes, type_bytes: dict[int, tuple[int, int]]) -> Content:
    """The reverse of to_bytes(), for sound files. type_bytes: tensor type -> (block size, block bytes)."""
    position = 4

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + code, data, position)
        position += struct.calcsize(code)
        return int(value)

    def piece(length: int) -> bytes:
        nonlocal position
        position += length
        return data[position - length : position]

    def text() -> bytes:
        return piece(number("Q"))

    def skip(kind: int) -> None:
        nonlocal position
        if kind == STRING:
            text()
        elif kind == ARRAY:
            element, count = number("I"), number("Q")
            if element == STRING:
                for _ in range(count):
                    text()
            else:
                position += count * struct.calcsize(CODES[element])
        else:
            position += struct.calcsize(CODES[kind])

    version, n_tensors, n_keys = number("I"), number("Q"), number("Q")
    content = Content(version, [], [])
    for _ in range(n_keys):
        name, kind = text(), number("I")
        start = position
        skip(kind)
        content.keys.append(Key(name, kind, data[start:position]))
    alignment = content.key("general.alignment")
    if alignment is not None:
        (content.alignment,) = struct.unpack("<I", alignment.value)
    offsets = []
    for _ in range(n_tensors):
        name = text()
        dims = [number("Q") for _ in range(number("I"))]
        kind = number("I")
        offsets.append(number("Q"))
        content.tensors.append(Tensor(name, dims, kind, b""))
    start = -(-position // content.alignment) * content.alignment
    for tensor, offset in zip(content.tensors, offsets, strict=True):
        size, in_bytes = type_bytes[tensor.type]
        values = 1
        for dim in tensor.dims:
            values *= dim
        tensor.data = data[start + offset : start + offset + values // size * in_bytes]
    return content


def array_items(key: Key) -> tuple[int, list[bytes]]:
    """Element type and the bytes of each item of an array (without the lengths of strings)."""
    element, count = struct.unpack_from("<IQ", key.value)
    items = []
    position = 12
    for _ in range(count):
        if element == STRING:
            (length,) = struct.unpack_from("<Q", key.value, position)
            position += 8
        else:
            length = struct.calcsize(CODES[element])
        items.append(key.value[position : position + length])
        position += length
    return int(element), items


def array_value(element: int, items: list[bytes]) -> bytes:
    if element == STRING:
        body = b"".join(struct.pack("<Q", len(item)) + item for item in items)
    else:
        body = b"".join(items)
    return struct.pack("<IQ", element, len(items)) + body


def string_value(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text
