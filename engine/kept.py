"""Where the engine keeps what it has found out about this machine, for the next start of the program."""

from __future__ import annotations

from pathlib import Path

_folder: Path | None = None


def keep_in(folder: Path | None) -> None:
    """Says where; None, as it is at first: nothing is kept. The folder need not exist."""
    global _folder
    _folder = folder


def kept_in() -> Path | None:
    return _folder
