"""Opening a GGUF file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gguf.metadata import TypedKeys
from engine.gguf.split import parse_all
from engine.gguf.tensors import TensorInfo


class GGUFFile(TypedKeys):
    """A model file, checked and memory-mapped; see TypedKeys for int(), float(), bool(), str(), strings(), ...

    A split model is opened through its first part and reads as one file: the keys are those of the first part, the
    tensors those of all. What an architecture needs (general.architecture among it) is checked when it is asked for,
    so that adapters and vocabulary-only files open too.

    Attributes:
        path: of the file (the first part, where the model is split).
        version: of the format, 2 or 3.
        alignment: of tensor data, in bytes.
        size: bytes of the file, or of all parts.
        metadata: key -> int, float, bool, str, numeric np.ndarray (read-only) or list[str].
        value_types: key -> the type of the value in the file in words: "uint32", "an array of 49152 strings".
        tensors: name -> TensorInfo, in the file's order.
        part_paths: of the file, or of all parts; TensorInfo.part counts them.
    """

    def __init__(self, path: Path) -> None:
        parts = parse_all(path)
        self.path = path
        self.version: int = parts[0].version
        self.alignment: int = parts[0].alignment
        self.size: int = sum(part.size for part in parts)
        self.metadata: Mapping[str, Any] = MappingProxyType(parts[0].metadata)
        self.value_types: Mapping[str, str] = MappingProxyType(parts[0].value_types)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: info for part in parts for name, info in part.tensors.items()}
        )
        self.part_paths: tuple[Path, ...] = tuple(part.path for part in parts)
        self._key_spans = parts[0].key_spans
        self._bytes: list[NDArray[np.uint8]] = [np.frombuffer(part.map, np.uint8) for part in parts]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Maps a file and checks all of it but the weights. Raises ModelFileError or UnsupportedModelError."""
        return cls(Path(path))

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: read-only uint8 [n_rows, row_bytes], a view onto the map and no copy.

        n_rows is the product of all dimensions but the last, 1 for a vector. Raises KeyError for an unknown name.
        """
        info = self.tensors[name]
        if not self._bytes:
            raise ValueError(f"{self.path.name} is closed")
        data = self._bytes[info.part][info.offset : info.offset + info.nbytes]
        return data.reshape(-1, info.type.row_bytes(info.shape[-1]))

    def key_bytes(self, key: str) -> bytes:
        """The entry of a key as the file has it: name, type and value. Raises KeyError for an unknown key."""
        start, end = self._key_spans[key]
        if not self._bytes:
            raise ValueError(f"{self.path.name} is closed")
        return self._bytes[0][start:end].tobytes()

    def release_pages(self) -> None:
        """Tells the system that nothing of the map is wanted now: what was read of it no longer counts as ours."""
        for part in self._bytes:
            release_pages(part)

    def close(self) -> None:
        """Lets go of the map. Arrays that data() gave stay valid: the last of them unmaps the file."""
        self._bytes = []

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def release_pages(data: NDArray[np.uint8]) -> None:
    """Tells the system that pages of the memory map are no longer wanted, so that they do not count as ours."""
    _advise(data, "MADV_DONTNEED")


def will_need(data: NDArray[np.uint8]) -> None:
    """Tells the system that pages of the memory map are wanted soon, so that it reads them ahead."""
    _advise(data, "MADV_WILLNEED")


def _advise(data: NDArray[np.uint8], advice: str) -> None:
    base: Any = data
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, advice):
        return
    start = np.frombuffer(mapped, np.uint8, 1).__array_interface__["data"][0]
    first = data.__array_interface__["data"][0] - start
    page = mmap.PAGESIZE
    mapped.madvise(getattr(mmap, advice), first // page * page, data.nbytes + first % page)
