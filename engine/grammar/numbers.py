"""Numbers between bounds as grammars of their decimal digits."""

from __future__ import annotations

import math
from decimal import Decimal

MOST_DIGITS = 16  # of an integer without an upper bound, and of a fraction
_FRACTION = f"[0-9]{{0,{MOST_DIGITS}}}"


def integer_gbnf(low: int | None, high: int | None) -> str | None:
    """Integers from low to high (None: no bound); None where there are none."""
    parts = []
    if low is None or low < 0:
        negative = _natural(max(1, -high) if high is not None else 1, None if low is None else -low)
        if negative is not None:
            parts.append(f'"-" ({negative})')
    if high is None or high >= 0:
        positive = _natural(max(0, low or 0), high)
        if positive is not None:
            parts.append(positive)
    return " | ".join(parts) or None


def number_gbnf(low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool) -> str | None:
    """Decimal numbers between two bounds, an open bound left out; None where there are none."""
    parts = []
    if low is None or low < 0:
        near = (Decimal(0), True) if high is None or high >= 0 else (-high, high_open)
        negative = _magnitude(*near, None if low is None else -low, low_open)
        if negative is not None:
            parts.append(f'"-" ({negative})')
    if high is None or high >= 0:
        near = (Decimal(0), False) if low is None or low < 0 else (low, low_open)
        positive = _magnitude(*near, high, high_open)
        if positive is not None:
            parts.append(positive)
    return " | ".join(parts) or None


def _natural(low: int, high: int | None) -> str | None:
    """Integers from low >= 0 up, without leading zeros."""
    if high is not None and low > high:
        return None
    first, last = str(low), str(high) if high is not None else "9" * max(MOST_DIGITS, len(str(low)) + 1)
    parts = []
    for length in range(len(first), len(last) + 1):
        start = first if length == len(first) else "1" + "0" * (length - 1)
        end = last if length == len(last) else "9" * length
        if high is None and length > len(first):
            parts.append(f"[1-9] [0-9]{{{length - 1},{len(last) - 1}}}")
            break
        parts.append(_same_length(start, end))
    return " | ".join(parts)


def _same_length(first: str, last: str) -> str:
    """Strings of digits between two of the same length."""
    if not first:
        return '""'
    if first == "0" * len(first) and last == "9" * len(last):
        return f"[0-9]{{{len(first)}}}"
    a, b = first[0], last[0]
    if a == b:
        return f'"{a}" {_grouped(_same_length(first[1:], last[1:]))}'
    parts = []
    nines, zeros = "9" * (len(first) - 1), "0" * (len(first) - 1)
    if first[1:] != zeros:
        parts.append(f'"{a}" {_grouped(_same_length(first[1:], nines))}')
        a = chr(ord(a) + 1)
    top = None
    if last[1:] != nines:
        top = f'"{b}" {_grouped(_same_length(zeros, last[1:]))}'
        b = chr(ord(b) - 1)
    if a <= b:
        parts.append(f"[{a}-{b}] {_grouped(_same_length(zeros, nines))}")
    return " | ".join([*parts, top] if top else parts)


def _grouped(text: str) -> str:
    return f"({text})" if " | " in text else text


def _magnitude(low: Decimal, low_open: bool, high: Decimal | None, high_open: bool) -> str | None:
    """Decimal numbers from low >= 0 to high."""
    if high is not None and (low > high or (low == high and (low_open or high_open))):
        return None
    first = math.floor(low)
    last = None if high is None else math.floor(high)
    low_digits = _fraction_digits(low)
    parts = []
    if last == first:
        assert high is not None
        parts.append(_with_fraction(first, _between(low_digits, low_open, _fraction_digits(high), high_open)))
    else:
        parts.append(_with_fraction(first, _between(low_digits, low_open, None, False)))
        middle = _natural(first + 1, None if last is None else last - 1)
        if middle is not None:
            parts.append(f'({middle}) ("." [0-9]{{1,{MOST_DIGITS}}})?')
        if last is not None and high is not None:
            parts.append(_with_fraction(last, _between(None, False, _fraction_digits(high), high_open)))
    return " | ".join(part for part in parts if part) or None


def _with_fraction(whole: int, fractions: tuple[bool, str] | None) -> str:
    if fractions is None:
        return ""
    none, digits = fractions
    with_point = f'"{whole}." ({digits})' if digits else ""
    return " | ".join(part for part in (f'"{whole}"' if none else "", with_point) if part)


def _fraction_digits(value: Decimal) -> str:
    return format(value, "f").partition(".")[2].rstrip("0")


def _between(low: str | None, low_open: bool, high: str | None, high_open: bool) -> tuple[bool, str] | None:
    """Digits behind a point that are between two others: whether there may be none, and GBNF for one or more."""
    if low == "" and not low_open:
        low = None
    if high == "" and high_open:
        return None
    none = (low is None) and not (high == "" and high_open)
    if low is None and high is None:
        return none, f"[0-9] [0-9]{{0,{MOST_DIGITS - 1}}}"
    if low is None and high == "":
        return none, f'"0"{{1,{MOST_DIGITS}}}'
    if low == "" and high is None:  # open: more than nothing
        return none, f'"0"{{0,{MOST_DIGITS}}} [1-9] {_FRACTION}'
    if low == "" and high == "":
        return None
    parts = []
    smallest = int(low[0]) if low else 0
    largest = 9 if high is None else int(high[0]) if high else 0
    for digit in range(smallest, largest + 1):
        tight_low = low is not None and digit == smallest
        tight_high = high is not None and digit == largest
        rest = _between(
            (low[1:] if low else "") if tight_low and low is not None else None,
            low_open if tight_low else False,
            (high[1:] if high else "") if tight_high and high is not None else None,
            high_open if tight_high else False,
        )
        if rest is None:
            continue
        may_stop, more = rest
        parts.append((f'"{digit}"', f"({more}){'?' if may_stop else ''}" if more else ""))
    if not parts:
        return (none, "") if none else None
    return none, " | ".join(f"{digit} {more}".strip() for digit, more in parts)
