"""Reading safetensors files.

Layout (https://github.com/huggingface/safetensors): 8 bytes length of the header, little-endian; the header, JSON, from
each tensor's name to its dtype, shape and the [begin, end) of its bytes in what follows; the bytes. They lie without
gaps or overlaps. Everything is compared with the size of the file before anything is allocated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from engine.adapters.adapter import DAMAGED
from engine.errors import AdapterError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own library."""

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Entry:
    """One tensor. begin, end: of its bytes, from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The tensors of a checked file; values are read when they are asked for.

    Attributes:
        tensors: name -> Entry, in the order of the header.
    """

    def __init__(self, path: Path) -> None:
        """Raises AdapterError where the file is not what it claims to be."""
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                if size == 0:
                    raise self._wrong("is empty")
                if len(prefix) < 8:
                    raise self._wrong(f"has {size} bytes, too few for a safetensors file")
                length = int.from_bytes(prefix, "little")
                if length > size - 8:
                    raise self._wrong(f"says that its header has {length} bytes, but only {size - 8} follow")
                if length > MAX_HEADER_BYTES:
                    raise self._wrong(f"has a header of {length} bytes, which no adapter needs")
                header = file.read(length)
        except OSError as error:
            raise AdapterError(
                f"{path} could not be read: {error.strerror or error}.", "Check that it is there and can be read."
            ) from error
        if len(header) < length:
            raise self._wrong("ends inside its header")
        self.tensors = self._entries(self._parse(header), 8 + length, size)

    def _parse(self, header: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for key, value in pairs:
                if key in found:
                    raise ValueError(f"{key!r} stands there twice")
                found[key] = value
            return found

        def constant(text: str) -> NoReturn:
            raise ValueError(f"{text} is no JSON")

        try:
            parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise self._wrong(f"has a header that cannot be read ({reason:.120})") from None
        if not isinstance(parsed, dict):
            raise self._wrong("has a header that is no JSON object")
        return parsed

    def _entries(self, header: dict[str, Any], data: int, size: int) -> dict[str, Entry]:
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise self._wrong("has a __metadata__ that is no object")
        entries = {name: self._entry(name, value, data, size) for name, value in header.items()}
        at, before = data, ""
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin < at:
                raise self._wrong(f"has tensors that overlap: {before!r} and {name!r}")
            if entry.begin > at:
                raise self._wrong(f"has {entry.begin - at} bytes before the tensor {name!r} that belong to none")
            at, before = entry.end, name
        if at != size:
            raise self._wrong(f"has {size - at} bytes after its last tensor that belong to none")
        return entries

    def _entry(self, name: str, value: Any, data: int, size: int) -> Entry:
        if not isinstance(value, dict):
            raise self._wrong(f"says nothing usable of the tensor {name!r}")
        dtype: Any = value.get("dtype")
        shape: Any = value.get("shape")
        offsets: Any = value.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _BYTES:
            raise self._wrong(f"has the tensor {name!r} in {dtype!r:.20}; Realm reads {', '.join(_BYTES)}")
        if not _whole_numbers(shape) or len(shape) > 8:
            raise self._wrong(f"gives the tensor {name!r} the shape {shape!r:.60}, which is none")
        if not _whole_numbers(offsets) or len(offsets) != 2:
            raise self._wrong(f"gives the tensor {name!r} the offsets {offsets!r:.60}, which are none")
        begin, end = offsets
        if begin > end or data + end > size:
            raise self._wrong(
                f"has the tensor {name!r} at bytes {begin} to {end}, but its data has {size - data} (cut off?)"
            )
        wanted = prod(shape) * _BYTES[dtype]
        if wanted != end - begin:
            raise self._wrong(
                f"gives the tensor {name!r} {end - begin} bytes, but its shape {list(shape)!r:.60} in {dtype} "
                f"takes {wanted:.12g}"
                if wanted < 1 << 62
                else f"gives the tensor {name!r} the impossible shape {list(shape)!r:.60}"
            )
        return Entry(dtype, tuple(shape), data + begin, data + end)

    def values(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32. Raises AdapterError where the file has become shorter, KeyError for unknown names."""
        entry = self.tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(entry.begin)
                raw = file.read(entry.end - entry.begin)
        except OSError as error:
            raise AdapterError(f"{self.path} could not be read: {error.strerror or error}.") from error
        if len(raw) != entry.end - entry.begin:
            raise self._wrong(f"ends inside the tensor {name!r}")
        if entry.dtype == "F32":
            values = np.frombuffer(raw, "<f4")
        elif entry.dtype == "F16":
            values = np.frombuffer(raw, "<f2").astype(np.float32)
        else:
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        shaped: NDArray[np.float32] = values.astype(np.float32, copy=False).reshape(entry.shape)
        return shaped

    def _wrong(self, what: str) -> AdapterError:
        return AdapterError(f"{self.path.name} {what}.", DAMAGED)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
