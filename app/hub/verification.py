"""Size and SHA-256 of files, and the note beside a file that says it was checked.

Hashing a large model takes many seconds, so a file that passed gets a stamp (`NAME.verified`: size, modification time,
SHA-256). While size and modification time stand, the stamp is believed.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from app.hub.http import check_cancelled

_HASH_CHUNK = 1 << 20


def hash_file(path: Path, length: int | None = None, cancel: threading.Event | None = None) -> Any:
    """hashlib's SHA-256 object over the first `length` bytes of a file (None: all), ready for more."""
    digest = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(_HASH_CHUNK, left))):
            check_cancelled(cancel)
            digest.update(chunk)
            left -= len(chunk)
    return digest


def stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def record_verified(path: Path, sha256: str) -> None:
    """Note that the file at `path` has this SHA-256. A folder that cannot be written costs a new check, no more."""
    status = path.stat()
    note = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
    try:
        stamp_path(path).write_text(json.dumps(note), encoding="utf-8")
    except OSError:
        return


def recorded_sha256(path: Path) -> str | None:
    """The SHA-256 that the file had when it was checked, or None if it changed since or never was."""
    try:
        status = path.stat()
        note = json.loads(stamp_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or (note.get("size"), note.get("mtime_ns")) != (status.st_size, status.st_mtime_ns):
        return None
    sha256 = note.get("sha256")
    return sha256 if isinstance(sha256, str) else None


def is_verified(path: Path, size: int | None, sha256: str | None, cancel: threading.Event | None = None) -> bool:
    """Whether a whole, checked file lies at `path`; hashes it where no stamp says so and `sha256` is known."""
    try:
        if not path.is_file() or (size is not None and path.stat().st_size != size):
            return False
        recorded = recorded_sha256(path)
        if sha256 is None or recorded is not None:
            return recorded is not None and sha256 in (None, recorded)
        if hash_file(path, cancel=cancel).hexdigest() != sha256:
            return False
    except OSError:
        return False
    record_verified(path, sha256)
    return True
