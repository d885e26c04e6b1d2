"""What the sections of the report are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import RealmError


@dataclass
class Section:
    """passed and total count the comparisons that have a bound; `missed` names those that are out of theirs."""

    title: str
    text: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    passed: int = 0
    missed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.passed + len(self.missed)

    def judge(self, what: str, good: bool) -> bool:
        if good:
            self.passed += 1
        else:
            self.missed.append(what)
        return good

    def judged(self, what: str, cell: str, good: bool) -> str:
        """The cell of a comparison; one out of its bound is set in bold."""
        return cell if self.judge(what, good) else f"**{cell}**"

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.text, ""]
        if self.rows:
            lines += [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
            lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in self.rows]
        else:
            lines.append("Nothing to compare with was found.")
        if self.missed:
            lines += ["", f"Out of bounds: {', '.join(self.missed)}."]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def nmse(got: Any, expected: Any) -> float:
    """Mean squared error as a share of the mean square of what is expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(((got - expected) ** 2).sum() / max(float((expected**2).sum()), 1e-300))


def number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 or value >= 1000 else f"{value:.3g}"


def attempt(section: Section, what: str, compute: Callable[[], str]) -> str:
    """The cell that compute() gives, or why there is none. A sentence for people is no failure; anything else is."""
    try:
        return compute()
    except RealmError as error:
        return str(error)
    except Exception as error:  # the report has to come out, whatever one model does
        section.missed.append(what)
        return f"**{type(error).__name__}: {str(error)[:100]}**"
