"""What the commands write to a terminal: colours where there is one, sizes in words, tables, progress."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def has_colour(stream: TextIO) -> bool:
    """Colours only on a terminal that knows them; see https://no-color.org."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO) -> str:
    """`text` in a style ("bold", "dim", "red", "green", "cyan"), plain where `stream` shows no colours."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if text and has_colour(stream) else text


def printable(text: str) -> str:
    """Without the control characters (other than newline and tab) that could steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def say(text: str, style: str = "") -> None:
    """A remark for the person, on stderr, so that it never mixes with output that is piped on."""
    line = printable(text)
    print(styled(line, style, sys.stderr) if style else line, file=sys.stderr, flush=True)


def write_answer(text: str) -> None:
    """Model text to stdout at once; byte for byte through a pipe, without control characters on a terminal."""
    sys.stdout.write(printable(text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """One line of JSON in ASCII, flushed. Numbers that JSON does not know (NaN, infinity) become null."""
    sys.stdout.write(json.dumps(_finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def bytes_text(count: float) -> str:
    """98362432 -> "98.4 MB" (decimal units, as shops and downloads count)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_text(count: float) -> str:
    """134515008 -> "134.5 M"."""
    for unit in ("", "K", "M", "B"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} T"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, two spaces apart."""
    clean = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*clean, fillvalue="")]
    lines = ("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in clean)
    return "\n".join(lines)


class ProgressBar:
    """One line on stderr that is redrawn in place; silent where stderr is no terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = ""

    def update(self, fraction: float, detail: str = "") -> None:
        if not is_terminal(sys.stderr):
            return
        fraction = min(max(fraction, 0.0), 1.0)
        filled = round(24 * fraction)
        line = f"{self._label} [{'#' * filled}{'.' * (24 - filled)}] {fraction:4.0%} {printable(detail)}"
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._shown:
            sys.stderr.write(f"\r{line.ljust(len(self._shown))}")
            sys.stderr.flush()
            self._shown = line

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r{' ' * len(self._shown)}\r")
            sys.stderr.flush()
            self._shown = ""
