"""The bytes of one GGUF file, turned into keys and tensor infos and checked on the way.

Source of the layout: docs/gguf.md of ggml. Where that page leaves something open, this reader refuses what ggml's own
reader refuses: nested arrays, names of 64 bytes and more, tensors that do not follow one another in the file.
Everything a count or a length asks for is compared with the bytes that remain before anything is allocated.
"""

from __future__ import annotations

import mmap
import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ModelFileError, RealmError, UnsupportedModelError
from engine.gguf.tensors import TensorInfo
from engine.quants import QuantType

_DAMAGED = "The file is damaged or incomplete; download it again."
_SCALARS = {  # value type: name and struct code, which is numpy's as well
    0: ("uint8", "<B"),
    1: ("int8", "<b"),
    2: ("uint16", "<H"),
    3: ("int16", "<h"),
    4: ("uint32", "<I"),
    5: ("int32", "<i"),
    6: ("float32", "<f"),
    7: ("bool", "<?"),
    10: ("uint64", "<Q"),
    11: ("int64", "<q"),
    12: ("float64", "<d"),
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_DEFAULT_ALIGNMENT = 32
_MAX_NAME_BYTES = 63
_MAX_DIMENSIONS = 4
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, name, value type, value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, name, n_dims, one dimension, type, offset
_REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
_OTHER_FORMATS = (  # first bytes of files that are mistaken for models
    (
        (b"GGML", b"ggml", b"lmgg", b"tjgg", b"fmgg", b"algg"),
        "a model in a format older than GGUF",
        "Convert it to GGUF.",
    ),
    ((b"PK\x03\x04",), "a zip archive (perhaps a PyTorch checkpoint)", "Choose a GGUF file."),
    ((b"vers",), "a Git LFS pointer, not the model itself", "Fetch the file with `git lfs pull`, or download it."),
    ((b"<!DO", b"<!do", b"<htm", b"<HTM"), "a web page", "The download went wrong; download the file again."),
)


@dataclass(frozen=True)
class Part:
    """One file, parsed. key_spans: key -> the first byte of its entry in the file, and the byte after the last."""

    path: Path
    map: mmap.mmap
    size: int
    version: int
    alignment: int
    metadata: dict[str, Any]
    value_types: dict[str, str]
    key_spans: dict[str, tuple[int, int]]
    tensors: dict[str, TensorInfo]


def parse(path: Path, part: int = 0) -> Part:
    """Maps and checks one file. Raises ModelFileError or UnsupportedModelError."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelFileError(f"{path} is a folder.", "Choose a .gguf file in it.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ModelFileError(f"{path} is not an ordinary file.", "Choose a .gguf file.")
        if status.st_size == 0:
            raise ModelFileError(f"{path.name} is empty.", "Download it again.")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(f"There is no file {path}.", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} could not be opened: {error}.", "Check that the file can be read.") from error
    try:
        return _Parser(path, mapped, len(mapped), part).parse()
    except BaseException:
        mapped.close()  # now, not when the error is forgotten: where a map locks its file, it could not be replaced
        raise


class _Parser:
    def __init__(self, path: Path, mapped: mmap.mmap, size: int, part: int) -> None:
        self.path = path
        self.map = mapped
        self.size = size
        self.part = part
        self.position = 0
        self.metadata: dict[str, Any] = {}
        self.value_types: dict[str, str] = {}
        self.key_spans: dict[str, tuple[int, int]] = {}

    def parse(self) -> Part:
        version = self._version()
        n_tensors = self._scalar("<q", "the number of tensors")
        n_keys = self._scalar("<q", "the number of keys")
        self._check_count("tensors", n_tensors, _MIN_TENSOR_BYTES)
        self._check_count("keys", n_keys, _MIN_KEY_BYTES)
        for index in range(n_keys):
            self._key(index, n_keys)
        alignment = self._alignment()
        if not isinstance(self.metadata.get("general.architecture", ""), str):
            found = self.value_types["general.architecture"]
            raise self._damaged(f"the key general.architecture must be a string, but the file has {found}")
        infos = self._tensor_infos(n_tensors)
        tensors = self._place(infos, alignment)
        return Part(
            self.path,
            self.map,
            self.size,
            version,
            alignment,
            self.metadata,
            self.value_types,
            self.key_spans,
            tensors,
        )

    # ---- header

    def _version(self) -> int:
        magic = self.map[:4]
        if magic != b"GGUF":
            for starts, what, hint in _OTHER_FORMATS:
                if magic in starts:
                    raise ModelFileError(f"{self.path.name} is not a GGUF file: it is {what}.", hint)
            raise ModelFileError(
                f"{self.path.name} is not a GGUF file: it starts with {magic!r} instead of b'GGUF'.",
                "Choose a GGUF model file.",
            )
        self.position = 4
        version = int(self._scalar("<I", "the version"))
        if version in (2, 3):
            return version
        if version == 1:
            raise UnsupportedModelError(
                f"{self.path.name} has version 1 of the GGUF format, which is too old.",
                "Look for a newer file of this model, or convert it again.",
            )
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError(
                f"{self.path.name} is stored big-endian (version {version:#010x}), for machines that order bytes"
                " the other way.",
                "Look for the little-endian file of this model.",
            )
        if version == 0:
            raise self._damaged("the version of the GGUF format is 0")
        raise UnsupportedModelError(
            f"{self.path.name} has version {version} of the GGUF format; versions 2 and 3 can be read.",
            "Update Realm, or download the file again if it should be an ordinary one.",
        )

    def _check_count(self, what: str, count: int, least_bytes: int) -> None:
        remaining = self.size - self.position
        if not 0 <= count <= remaining // least_bytes:
            raise self._damaged(f"it claims {count} {what}, which the {remaining} bytes that follow cannot hold")

    # ---- keys

    def _key(self, index: int, n_keys: int) -> None:
        begin = self.position
        where = f"the name of key {index + 1} of {n_keys}"
        key = self._string(where)
        if not key:
            raise self._damaged(f"{where} is empty")
        if key in self.metadata:
            raise self._damaged(f"the key {shown(key)} occurs twice")
        where = f"the key {shown(key)}"
        value_type = int(self._scalar("<I", f"the type of {where}"))
        if value_type == _ARRAY:
            value, name = self._array(where)
        elif value_type == _STRING:
            value, name = self._string(where), "a string"
        elif value_type in _SCALARS:
            name, code = _SCALARS[value_type]
            value = self._scalar(code, where)
        else:
            raise self._damaged(f"{where} has the unknown value type {value_type}")
        self.metadata[key] = value
        self.value_types[key] = name
        self.key_spans[key] = (begin, self.position)

    def _array(self, where: str) -> tuple[Any, str]:
        element = int(self._scalar("<I", where))
        count = int(self._scalar("<Q", where))
        if element == _ARRAY:
            raise UnsupportedModelError(
                f"{self.path.name}: {where} is an array of arrays, which is not supported.",
                "Look for another file of this model.",
            )
        if element == _STRING:
            self._check_array(where, count, 8, "strings")
            return self._strings(count, where), f"an array of {count} strings"
        if element not in _SCALARS:
            raise self._damaged(f"{where} is an array of the unknown value type {element}")
        name, code = _SCALARS[element]
        dtype = np.dtype(code)
        self._check_array(where, count, dtype.itemsize, f"{name} values")
        end = self.position + count * dtype.itemsize
        raw = self.map[self.position : end]  # a copy, so that metadata outlives the map
        self.position = end
        if dtype.kind == "b":  # any byte but 0 is true
            return np.frombuffer(raw, np.uint8) != 0, f"an array of {count} bool values"
        return np.frombuffer(raw, dtype), f"an array of {count} {name} values"

    def _check_array(self, where: str, count: int, least_bytes: int, what: str) -> None:
        remaining = self.size - self.position
        if count > remaining // least_bytes:
            raise self._damaged(f"{where} claims an array of {count} {what}, but only {remaining} bytes follow")

    def _strings(self, count: int, where: str) -> list[str]:
        # Vocabularies have up to 300,000 entries, so this loop is kept bare.
        mapped, position, size, length_at = self.map, self.position, self.size, _LENGTH.unpack_from
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(count):
                start = position + 8
                position = start + length_at(mapped, position)[0]
                if position > size:
                    break
                append(str(mapped[start:position], "utf-8", "surrogateescape"))
        except struct.error:
            pass
        if len(strings) < count:
            raise self._damaged(f"string {len(strings) + 1} of {count} in {where} runs past the end of the file")
        self.position = position
        return strings

    def _alignment(self) -> int:
        key = "general.alignment"
        alignment = self.metadata.get(key, _DEFAULT_ALIGNMENT)
        if key in self.metadata and self.value_types[key] != "uint32":
            raise self._damaged(f"the key {key} must be uint32, but the file has {self.value_types[key]}")
        if alignment <= 0 or alignment & (alignment - 1):
            raise self._damaged(f"the key {key} is {alignment}, but must be a power of two")
        return int(alignment)

    # ---- tensors

    def _tensor_infos(self, n_tensors: int) -> list[TensorInfo]:
        """The infos in the file's order; their offsets still count from the start of the data."""
        infos: dict[str, TensorInfo] = {}
        for index in range(n_tensors):
            where = f"the name of tensor {index + 1} of {n_tensors}"
            name = self._string(where)
            n_bytes = len(name.encode("utf-8", "surrogateescape"))
            if not 1 <= n_bytes <= _MAX_NAME_BYTES:
                raise self._damaged(f"{where} has {n_bytes} bytes, but must have 1 to {_MAX_NAME_BYTES}")
            if name in infos:
                raise self._damaged(f"the tensor {shown(name)} occurs twice")
            infos[name] = self._tensor_info(name)
        return list(infos.values())

    def _tensor_info(self, name: str) -> TensorInfo:
        where = f"the tensor {shown(name)}"
        n_dims = int(self._scalar("<I", f"the dimensions of {where}"))
        if not 1 <= n_dims <= _MAX_DIMENSIONS:
            raise self._damaged(f"{where} has {n_dims} dimensions, but must have 1 to {_MAX_DIMENSIONS}")
        dims = [int(self._scalar("<q", f"the dimensions of {where}")) for _ in range(n_dims)]
        if min(dims) < 1:
            raise self._damaged(f"{where} has a dimension of {min(dims)} in its shape {dims}")
        type_id = int(self._scalar("<I", f"the type of {where}"))
        offset = int(self._scalar("<Q", f"the offset of {where}"))
        quant = self._quant_type(type_id, where)
        if dims[0] % quant.block_size:
            raise self._damaged(
                f"{where} has rows of {dims[0]} values, which is not a whole number of {quant.name} blocks"
                f" of {quant.block_size}"
            )
        nbytes = quant.row_bytes(dims[0]) * prod(dims[1:])
        if nbytes > self.size:  # python's integers do not wrap, so this catches every product that is too large
            raise self._damaged(
                f"{where} of shape {dims} and type {quant.name} needs {nbytes} bytes, but the file has {self.size}"
            )
        return TensorInfo(name, tuple(reversed(dims)), quant, offset, nbytes, self.part)

    def _quant_type(self, type_id: int, where: str) -> QuantType:
        try:
            return QuantType.by_id(type_id)
        except KeyError:
            pass
        if type_id in _REMOVED_TYPES:
            what = f"the type {_REMOVED_TYPES[type_id]}, which ggml has dropped"
            hint = "Look for a newer file of this model."
        else:
            what = f"the unknown type {type_id}"
            hint = "Update Realm, or look for a file of this model with another quantisation."
        raise UnsupportedModelError(f"{self.path.name}: {where} has {what}.", hint)

    def _place(self, infos: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
        """Checks that the tensors follow one another inside the file; gives them their absolute offsets."""
        start = _align(self.position, alignment)
        if infos and start > self.size:
            raise self._damaged(
                f"the tensor data should start at byte {start} (alignment {alignment}), but the file has {self.size}"
            )
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for info in infos:
            where = f"the tensor {shown(info.name)}"
            if info.offset != expected:
                if info.offset % alignment:
                    why = f"which is not a multiple of the alignment {alignment}"
                elif info.offset < expected:
                    why = f"which overlaps the tensor before it, which ends at {expected}"
                else:
                    why = f"but the tensor before it ends at {expected}"
                raise self._damaged(f"{where} has the offset {info.offset}, {why}")
            if start + info.offset + info.nbytes > self.size:
                raise self._damaged(
                    f"{where} should end at byte {start + info.offset + info.nbytes}, but the file has {self.size}"
                )
            expected = _align(info.offset + info.nbytes, alignment)
            tensors[info.name] = TensorInfo(
                info.name, info.shape, info.type, start + info.offset, info.nbytes, self.part
            )
        return tensors

    # ---- pieces

    def _scalar(self, code: str, where: str) -> Any:
        size = struct.calcsize(code)
        if self.position + size > self.size:
            raise self._damaged(f"it ends inside {where}")
        (value,) = struct.unpack_from(code, self.map, self.position)
        self.position += size
        return value

    def _string(self, where: str) -> str:
        length = int(self._scalar("<Q", where))
        remaining = self.size - self.position
        if length > remaining:
            raise self._damaged(f"{where} claims {length} bytes of text, but only {remaining} follow")
        raw = self.map[self.position : self.position + length]
        self.position += length
        return str(raw, "utf-8", "surrogateescape")

    def _damaged(self, what: str) -> RealmError:
        return ModelFileError(f"{self.path.name}: {what}.", _DAMAGED)


def _align(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment


def shown(name: str, most: int = 80) -> str:
    """A name as a message can show it: printable, and not endless."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:most])
    return text + "…" * (len(name) > most)
