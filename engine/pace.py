"""How much of a prompt goes into one step, so that whoever waits for the step does not wait long."""

from __future__ import annotations

BESIDE_ANSWERS_S = 0.1
"""So long may the prompts' part of a step hold up the answers that run beside it."""

ALONE_S = 0.5
"""So long may a step of prompts take where nobody but a newcomer or a cancel waits for it."""

LEAST_ROWS = 32
FIRST_ROWS = 128
"""Beside answers, until the speed has been measured."""

FEW_ROWS = 16
"""A step of so few rows takes about as long as one of a single row: the time that every step takes."""

SHARE_OF_FIXED_TIME = 0.2
"""Chunks are not made so short that more than this part of a step is the time that every step takes."""

SMOOTHING = 0.3


class Pace:
    """Learns from steps what rows cost: seconds = what every step takes + rows / rate."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._every_step_s = 0.0
        self._rate = 0.0
        self._rows, self._seconds = 0, 0.0  # of steps whose end has not been waited for yet

    @property
    def rows_per_s(self) -> float:
        """The measured speed of prompts, 0 before there is any."""
        return self._rate

    def rows(self, *, beside_answers: bool) -> int:
        """How many rows of prompts the next step should take at most."""
        if not self._rate:
            return min(FIRST_ROWS if beside_answers else self._max_rows, self._max_rows)
        wanted = self._rate * (BESIDE_ANSWERS_S if beside_answers else ALONE_S)
        least = self._rate * self._every_step_s * (1 - SHARE_OF_FIXED_TIME) / SHARE_OF_FIXED_TIME
        return int(min(self._max_rows, max(wanted, least, LEAST_ROWS)))

    def measured(self, rows: int, seconds: float, *, waited: bool) -> None:
        """A step of `rows` took so long. waited: its results came; else the device may still be at it."""
        self._rows += rows
        self._seconds += seconds
        if not waited:
            return
        rows, seconds = self._rows, self._seconds
        self._rows, self._seconds = 0, 0.0
        if rows <= FEW_ROWS:
            self._every_step_s = _smoothed(self._every_step_s, seconds)
        elif rows >= LEAST_ROWS and seconds > 0:
            self._rate = _smoothed(self._rate, rows / max(seconds - self._every_step_s, seconds / 2))


def _smoothed(before: float, value: float) -> float:
    return value if not before else before + SMOOTHING * (value - before)
