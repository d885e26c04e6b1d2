"""The format of a session file.

    8 bytes     REALMKV1
    uint32      length of the header, little endian
    ...         the header, JSON: the model, the layout of a block, its size
    16 bytes    BLAKE2b of the header
    then for each full KV block of the chat, in order:
    16 bytes    its key: names its tokens, all tokens before it, and the adapters (engine/kv.py)
    16 bytes    BLAKE2b of key and content
    ...         its content, block_bytes bytes

A session is a cache. Whatever does not verify is not used, and what stands before it still is: so a file whose writing
was cut short costs only its last blocks, and one that is damaged, or of another model, costs a prefill.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.kv import Key

MAGIC = b"REALMKV1"
FAMILY = MAGIC[:-1]
"""What files of other versions begin with too."""
DIGEST = 16
MOST_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Identity:
    """What keys and values depend on beside tokens and adapters."""

    model: str  # ModelInfo.fingerprint
    layout: str  # LoadedModel.kv_layout
    block_bytes: int


@dataclass(frozen=True)
class Restored:
    """Blocks first, first + 1, ... of a chat: uint8 [blocks, block_bytes]. note: a sentence, if not all went well."""

    first: int
    data: NDArray[np.uint8]
    note: str = ""


class _UnusableError(Exception):
    """Says in a clause why a file cannot be used."""


def is_foreign(path: Path) -> bool:
    """Whether something else is kept at `path`, which a session must not take the place of: another file, a folder, a
    device. Raises OSError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return True  # opening a pipe would wait for its other end
        with path.open("rb") as file:
            start = file.read(len(FAMILY))
    except FileNotFoundError:
        return False
    return start != FAMILY[: len(start)]  # an empty file, and one whose writing was cut short, may be replaced


def check_session_path(path: Path) -> None:
    """Raises RequestError where no session can be kept: in place of a folder or of a file that is something else."""
    try:
        if path.is_dir():
            raise RequestError(f"{path} is a folder, so no session can be kept there.", "Give the path of a file.")
        if path.exists() and is_foreign(path):
            raise RequestError(
                f"{path} is no session file but something else, and stays as it is.",
                "Give a file that is not there yet.",
            )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"The session file {path} cannot be read: {reason}.", "Give another path.") from None


def read_session(path: Path, identity: Identity, keys: Sequence[Key], first: int) -> Restored:
    """The blocks from `first` on that the file has of the chat whose blocks have these keys. Never raises."""
    try:
        if path.exists() and not path.is_file():
            raise _UnusableError("it is no ordinary file")
        with path.open("rb") as file:
            start = _check_header(file, identity)
            data, note = _read_blocks(file, start, path.name, identity.block_bytes, keys, first)
            return Restored(first, data, note)
    except FileNotFoundError:
        note = ""
    except _UnusableError as reason:
        note = f"The session file {path.name} was not used: {reason}."
    except MemoryError:
        note = f"The session file {path.name} was not used: there is not enough memory to read it."
    except (OSError, ValueError) as error:
        note = f"The session file {path.name} could not be read ({getattr(error, 'strerror', None) or error})."
    return Restored(first, np.empty((0, identity.block_bytes), np.uint8), note)


def _read_blocks(
    file: BinaryIO, start: int, name: str, block_bytes: int, keys: Sequence[Key], first: int
) -> tuple[NDArray[np.uint8], str]:
    present = _matching(file, start, block_bytes, keys)
    count = max(present - first, 0)
    data = np.empty((count, block_bytes), np.uint8)
    for i in range(count):
        file.seek(start + (first + i) * (2 * DIGEST + block_bytes) + DIGEST)
        digest = file.read(DIGEST)
        read = file.readinto(data[i].data)  # type: ignore[attr-defined]
        if read != block_bytes or digest != _digest(keys[first + i], data[i]):
            return data[:i], f"The session file {name} is damaged; {first + i} of its {present} blocks could be used."
    if not present and keys and file.seek(0, os.SEEK_END) >= start + 2 * DIGEST:
        return data, f"The session file {name} holds another chat, or one that began otherwise."
    return data, ""


def _matching(file: BinaryIO, start: int, block_bytes: int, keys: Sequence[Key]) -> int:
    """How many of the file's blocks are, by their keys, the first of these."""
    record = 2 * DIGEST + block_bytes
    whole = max(file.seek(0, os.SEEK_END) - start, 0) // record
    for number in range(min(whole, len(keys))):
        file.seek(start + number * record)
        if file.read(DIGEST) != keys[number]:
            return number
    return min(whole, len(keys))


def write_session(path: Path, identity: Identity, keys: Sequence[Key], first: int, data: NDArray[np.uint8]) -> bool:
    """Makes the file hold the blocks with these keys; data: those from `first` on, which the file has before.

    With blocks before `first` the file is extended; else it is replaced, at once. False when the file does not have
    the blocks before `first` (any more): nothing was written. Raises OSError, also for a file that is no session.
    """
    if first:
        try:
            with path.open("r+b") as file:
                start = _check_header(file, identity)
                present = _matching(file, start, identity.block_bytes, keys)
                if present < first:
                    return False
                file.seek(start + present * (2 * DIGEST + identity.block_bytes))
                file.truncate()
                _write_blocks(file, keys[present:], data[present - first :])
                return True
        except (FileNotFoundError, _UnusableError):
            return False
    if is_foreign(path):
        raise FileExistsError(errno.EEXIST, "a file that is no session is there", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.touch(mode=0o600)  # chats are private
        with temporary.open("wb") as file:
            header = json.dumps(asdict(identity)).encode()
            file.write(MAGIC + struct.pack("<I", len(header)) + header + blake2b(header, digest_size=DIGEST).digest())
            _write_blocks(file, keys, data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return True


def _write_blocks(file: BinaryIO, keys: Sequence[Key], data: NDArray[np.uint8]) -> None:
    for key, content in zip(keys, data, strict=True):
        file.write(key + _digest(key, content))
        file.write(content.data)


def _digest(key: Key, content: NDArray[np.uint8]) -> bytes:
    digest = blake2b(key, digest_size=DIGEST)
    digest.update(content.data)
    return digest.digest()


def _check_header(file: BinaryIO, identity: Identity) -> int:
    """Where the blocks begin. Raises _UnusableError."""
    start = file.read(len(MAGIC) + 4)
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 4:
        raise _UnusableError("it is not a session file of this version of Realm")
    length = struct.unpack("<I", start[len(MAGIC) :])[0]
    header = file.read(min(length, MOST_HEADER_BYTES))
    if len(header) != length or file.read(DIGEST) != blake2b(header, digest_size=DIGEST).digest():
        raise _UnusableError("it is damaged")
    values = json.loads(header)
    if not isinstance(values, dict):
        raise _UnusableError("it is damaged")
    if values.get("model") != identity.model:
        raise _UnusableError("it was written with another model")
    if values != asdict(identity):
        raise _UnusableError("it was written on another kind of device, or with another kind of KV cache")
    return file.tell()
