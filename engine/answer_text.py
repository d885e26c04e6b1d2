"""From the tokens of an answer to the text that is certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TextDecoder(Protocol):
    """Tokens to whole characters; `engine.tokenizer.StreamDecoder` is one."""

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...


class AnswerText:
    """Text of an answer up to the first stop string, given out as soon as no stop string can claim it.

    What comes out does not depend on how the text is cut into tokens: the stop string that is complete first ends
    the answer, and the text before its beginning is kept.
    """

    def __init__(self, decoder: TextDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with this token; `stopped` says whether a stop string is complete."""
        return self._advance(self._decoder.push(token))

    def finish(self) -> str:
        """What is still held back, when the answer ends for another reason than a stop string."""
        text = self._advance(self._decoder.flush())
        held, self._held = self._held, ""
        return text + held

    def _advance(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for length in range(min(max(map(len, self._stop)) - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
