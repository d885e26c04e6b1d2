"""Which errors a person is meant to read, and in what words."""

from __future__ import annotations

import os

from engine.errors import RealmError


def sentence_of(error: Exception) -> str | None:
    """One line that says what went wrong and what to do, or None for an error that is a defect of the program."""
    if isinstance(error, RealmError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "There is not enough memory for this. Close other programs, or choose a smaller model or context length."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror or error}."
    return None
