"""Writing GGUF files, version 3. Source of the layout: docs/gguf.md of ggml."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from engine.errors import RealmError
from engine.quants import QuantType

_UINT16, _UINT32, _INT32, _FLOAT32, _STRING = 2, 4, 5, 6, 8
_CODES = {_UINT16: "<H", _UINT32: "<I", _INT32: "<i"}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written; shape slowest dimension first, as in TensorInfo."""

    name: str
    shape: tuple[int, ...]
    type: QuantType

    @property
    def nbytes(self) -> int:
        return self.type.row_bytes(self.shape[-1]) * prod(self.shape[:-1])


def uint16_key(key: str, value: int) -> bytes:
    """The entry of a key as GGUFFile.key_bytes() gives it."""
    return _integer_key(key, _UINT16, value)


def uint32_key(key: str, value: int) -> bytes:
    return _integer_key(key, _UINT32, value)


def int32_key(key: str, value: int) -> bytes:
    return _integer_key(key, _INT32, value)


def float32_key(key: str, value: float) -> bytes:
    return _string(key) + struct.pack("<If", _FLOAT32, value)


def string_key(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", _STRING) + _string(value)


def _integer_key(key: str, value_type: int, value: int) -> bytes:
    return _string(key) + struct.pack("<I", value_type) + struct.pack(_CODES[value_type], value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def unfinished_path(path: Path) -> Path:
    """Under which name a file is written until it is whole."""
    return path.with_name(path.name + ".part")


def padded_size(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def head_bytes(keys: Sequence[bytes], tensors: Sequence[NewTensor], alignment: int) -> bytes:
    """All of a file before its tensor data, padding included. keys: entries, general.alignment among them if not 32."""
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)), *keys]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        head.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        head.append(struct.pack("<IQ", tensor.type.id, offset))
        offset += padded_size(tensor.nbytes, alignment)
    joined = b"".join(head)
    return joined + bytes(padded_size(len(joined), alignment) - len(joined))


class GGUFWriter:
    """Writes one file front to back into PATH.part, which becomes PATH when it is whole and is removed otherwise.

    To be used with `with`; inside, write() takes the bytes of all tensors in order. Raises RealmError when the disk
    does not take them.
    """

    def __init__(self, path: Path, keys: Sequence[bytes], tensors: Sequence[NewTensor], alignment: int) -> None:
        self.path = path
        self._unfinished = unfinished_path(path)
        self._head = head_bytes(keys, tensors, alignment)
        self._sizes = [tensor.nbytes for tensor in tensors]
        self._alignment = alignment
        self._written = 0  # of the tensor at hand
        self._file: BinaryIO | None = None

    def __enter__(self) -> GGUFWriter:
        try:
            self._file = self._unfinished.open("wb")
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._put(self._head)
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the tensor at hand; the tensor ends with its last byte."""
        self._written += len(data)
        if not self._sizes or self._written > self._sizes[0]:
            raise ValueError(f"more bytes for {self.path.name} than its tensors have")
        self._put(data)
        if self._written == self._sizes[0]:
            self._put(bytes(padded_size(self._written, self._alignment) - self._written))
            del self._sizes[0]
            self._written = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                if self._sizes:
                    raise ValueError(f"{len(self._sizes)} tensors of {self.path.name} were not written")
                try:
                    self._file.close()  # its last bytes may not fit either
                    self._unfinished.replace(self.path)
                except OSError as failure:
                    raise self._failed(failure) from failure
        finally:
            self._discard()

    def _discard(self) -> None:
        """Removes what is not whole; after the file got its name there is nothing to remove."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._unfinished.unlink(missing_ok=True)

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RealmError:
        return RealmError(
            f"{self.path} could not be written: {error.strerror or error}.",
            "Make room on the disk or choose another folder.",
        )
