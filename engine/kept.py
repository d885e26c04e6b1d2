"""Where the engine keeps what it has found out about this machine, for the next start of the program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_folder: Path | None = None


def keep_in(folder: Path | None) -> None:
    """Says where; None, as it is at first: nothing is kept. The folder need not exist."""
    global _folder
    _folder = folder


def kept_in() -> Path | None:
    return _folder


class Kept:
    """What was found out about something: names and what was chosen for each, in a file of its own.

    about: all that it depends on. What was found under other circumstances is not read.
    """

    def __init__(self, about: Mapping[str, str | int]) -> None:
        self._about = dict(about)
        self._path: Path | None = None
        if _folder is not None:
            name = hashlib.sha256(json.dumps(self._about).encode()).hexdigest()[:16]
            self._path = _folder / "kernels" / f"{name}.json"

    def read(self) -> dict[str, str]:
        """Nothing where the file is not there, broken, or about something else."""
        try:
            found: Any = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
            chosen = found["chosen"] if all(found[key] == value for key, value in self._about.items()) else {}
            return {str(what): str(way) for what, way in chosen.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write(self, chosen: Mapping[str, str]) -> None:
        """In a folder that cannot be written to nothing is kept: the next start finds it out again."""
        if self._path is None:
            return
        text = json.dumps({**self._about, "chosen": dict(sorted(chosen.items()))}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            part.replace(self._path)
        except OSError:
            return
