"""How the bootstrap speaks: whole lines, and one line that renews itself where someone watches a terminal."""

from __future__ import annotations

import shutil
import sys
from typing import NoReturn


def say(text: str) -> None:
    print(f"• {text}" if _speaks_unicode() else f"* {text}", flush=True)


def fail(text: str) -> NoReturn:
    """Ends the program with a message instead of a traceback."""
    print(f"\n{text}", file=sys.stderr, flush=True)
    raise SystemExit(1)


class Status:
    """A line that is written over again and again; silent where output is not a terminal."""

    def __init__(self) -> None:
        self.shown = sys.stdout.isatty()

    def update(self, text: str) -> None:
        if self.shown:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("\r" + f"  {text}"[:width].ljust(width))
            sys.stdout.flush()

    def clear(self) -> None:
        if self.shown:
            sys.stdout.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            sys.stdout.flush()


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
