"""How strongly an adapter may act; one limit for requests, chats and the command line."""

from __future__ import annotations

import math
from typing import Any

from engine.errors import RequestError

MAX_STRENGTH = 2.0
"""How far from 0 a strength may be: what is trained at 1 says nothing sensible far beyond it."""


def check_strength(name: str, strength: Any) -> None:
    """Raises RequestError for anything but a number that an adapter's strength may be. name: the adapter's."""
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
        raise RequestError(
            f"The strength of the adapter {name} is {strength!r:.40}, but it has to be a number from "
            f"{-MAX_STRENGTH:g} to {MAX_STRENGTH:g}.",
            "1 is as it was trained, 0 is off.",
        )
