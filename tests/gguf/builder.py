"""Builds small GGUF files, sound or not, from plain values."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
CODES = {
    UINT8: "<B",
    INT8: "<b",
    UINT16: "<H",
    INT16: "<h",
    UINT32: "<I",
    INT32: "<i",
    FLOAT32: "<f",
    BOOL: "<?",
    UINT64: "<Q",
    INT64: "<q",
    FLOAT64: "<d",
}


@dataclass
class Array:
    element: int
    values: list[object]


@dataclass
class Tensor:
    """dims in ggml's order, fastest first."""

    name: str | bytes
    dims: list[int]
    type: int = 0
    data: bytes | None = None
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class Model:
    """keys: name -> (type, value). None for a count means the true one."""

    keys: dict[str | bytes, tuple[int, object]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    raw_keys: bytes = b""

    def __bytes__(self) -> bytes:
        return self.head() + self.data()

    def head(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) + bool(self.raw_keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        for key, (kind, value) in self.keys.items():
            head += string(key) + struct.pack("<I", kind) + _value(kind, value)
        head += self.raw_keys
        offset = 0
        for tensor in self.tensors:
            n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
            head += string(tensor.name) + struct.pack("<I", n_dims)
            head += b"".join(struct.pack("<Q", size) for size in tensor.dims)
            head += struct.pack("<IQ", tensor.type, offset if tensor.offset is None else tensor.offset)
            offset += len(self._padded(_tensor_data(tensor)))
        return self._padded(head)

    def data(self) -> bytes:
        return b"".join(self._padded(_tensor_data(tensor)) for tensor in self.tensors)

    def _padded(self, data: bytes) -> bytes:
        return data + bytes(-len(data) % self.alignment)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: object) -> bytes:
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    if kind == ARRAY:
        assert isinstance(value, Array)
        body = b"".join(_value(value.element, item) for item in value.values)
        return struct.pack("<IQ", value.element, len(value.values)) + body
    return struct.pack(CODES[kind], value)


def _tensor_data(tensor: Tensor) -> bytes:
    if tensor.data is not None:
        return tensor.data
    n = 1
    for size in tensor.dims:
        n *= size
    return b"".join(struct.pack("<f", i) for i in range(n))


def small_model() -> Model:
    """A sound file with a key of every type, a matrix, a vector and a quantised matrix."""
    scalars: dict[str | bytes, tuple[int, object]] = {
        f"test.scalar.{kind}": (kind, True if kind == BOOL else 7) for kind in CODES
    }
    return Model(
        keys={
            "general.architecture": (STRING, "llama"),
            "llama.block_count": (UINT32, 2),
            "llama.rope.freq_base": (FLOAT32, 10000.0),
            "tokenizer.ggml.tokens": (ARRAY, Array(STRING, ["a", "bé", b"\xff\xfe", ""])),
            "tokenizer.ggml.scores": (ARRAY, Array(FLOAT32, [0.5, -1.0, 0.0, 2.0])),
            "tokenizer.ggml.token_type": (ARRAY, Array(INT32, [1, 1, 6, 3])),
            "test.empty": (ARRAY, Array(UINT8, [])),
            "test.flags": (ARRAY, Array(BOOL, [True, False])),
            **scalars,
        },
        tensors=[
            Tensor("token_embd.weight", [4, 3]),
            Tensor("output_norm.weight", [5]),
            Tensor("blk.0.ffn_down.weight", [64, 2], type=3, data=bytes(range(80))),
        ],
    )
