"""Reading what a person types or pipes in, a message at a time."""

from __future__ import annotations

import contextlib
import sys
from typing import Protocol

from app.cli.input import decoded
from app.cli.terminal import has_colour, is_terminal

FENCE = '"""'


class LineSource(Protocol):
    def line(self, prompt: str) -> str | None:
        """The next line without its end, None at the end of the input. Raises KeyboardInterrupt on Ctrl-C."""
        ...

    def pending(self) -> bool:
        """Whether more lines are there already, as after a paste."""
        ...


class PipedLines:
    """Lines of a pipe or file, UTF-8."""

    def __init__(self) -> None:
        self._number = 0

    def line(self, prompt: str) -> str | None:
        data = sys.stdin.buffer.readline()
        self._number += 1
        return decoded(data, f"Line {self._number} of the input").rstrip("\r\n") if data else None

    def pending(self) -> bool:
        return False


class TypedLines:
    """Lines typed at a terminal, with editing and recall where the system offers them.

    A paste of many lines is one message: newer line editors hand it over whole (bracketed paste); with older ones
    the lines that are there at once after the first belong to it.
    """

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # absent on Windows, whose console edits lines itself
            import readline

            readline.parse_and_bind("set enable-bracketed-paste on")

    def line(self, prompt: str) -> str | None:
        if prompt and not is_terminal(sys.stdout):  # answers go elsewhere; the prompt must not go with them
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return input(_styled_prompt(prompt))
        except EOFError:
            return None

    def pending(self) -> bool:
        if sys.platform == "win32":
            import msvcrt

            return msvcrt.kbhit()
        import select

        return bool(select.select([sys.stdin], [], [], 0.02)[0])


def read_message(source: LineSource, prompt: str) -> str | None:
    """The next message, None at the end of the input.

    A message is one line, the lines of one paste, or what stands between two lines of \"\"\" (also on the same line
    as the text). Blank messages come back as they are.
    """
    first = source.line(prompt)
    if first is None:
        return None
    if first.lstrip().startswith(FENCE):
        return _fenced(source, first.lstrip().removeprefix(FENCE))
    lines = [first]
    while source.pending():
        more = source.line("")
        if more is None:
            break
        lines.append(more)
    return "\n".join(lines)


def _fenced(source: LineSource, first: str) -> str:
    lines: list[str] = []
    line: str | None = first
    while line is not None:
        text, fence, _ = line.partition(FENCE)
        lines.append(text)
        if fence:
            break
        line = source.line("")
    return "\n".join(lines).strip("\n")


def _styled_prompt(prompt: str) -> str:
    """Bold; \\x01 and \\x02 tell the line editor that what stands between them takes no room."""
    if not prompt or not has_colour(sys.stdout):
        return prompt
    try:
        import readline  # noqa: F401  # without it the marks would be printed
    except ImportError:
        return f"\x1b[1m{prompt}\x1b[0m"
    return f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02"
