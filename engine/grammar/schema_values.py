"""What a JSON schema says of texts, numbers and constants, as GBNF."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from engine.errors import RequestError
from engine.grammar.gbnf import MOST_REPETITIONS
from engine.grammar.json_text import json_text, literal, times
from engine.grammar.merging import Impossible
from engine.grammar.numbers import integer_gbnf, number_gbnf
from engine.grammar.pattern import impossible, limited, parse_pattern, string_gbnf
from engine.grammar.syntax import Node

OF_OBJECTS = ("properties", "required", "additionalProperties", "patternProperties", "propertyNames",
              "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
              "unevaluatedProperties")  # fmt: skip
OF_ARRAYS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains",
             "unevaluatedItems")  # fmt: skip
OF_STRINGS = ("minLength", "maxLength", "pattern", "format")
OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
"""The keywords that say something of one kind of value only."""

MOST_BOUND_DIGITS = 40

_YEAR = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = r"(([0-9]{2}(0[48]|[2468][048]|[13579][26]))|((0[48]|[2468][048]|[13579][26])00))"
_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    rf"|{_LEAP}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_WORD = "[a-zA-Z0-9_%+-]{1,32}"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
_SEGMENT = "[a-zA-Z0-9_.~-]*"
_POINTER = "(/([a-zA-Z0-9_. -]|~[01])*)*"
_TIME_SPAN = r"T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|[0-9]{1,4}M([0-9]{1,4}S)?|[0-9]{1,4}S)"
_DAYS = "[0-9]{1,4}D"
_MONTHS = f"[0-9]{{1,4}}M({_DAYS})?"
_YEARS = f"[0-9]{{1,4}}Y({_MONTHS})?"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    **dict.fromkeys(
        ("uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"),
        "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    ),
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,4}}",
    "email": rf"{_WORD}(\.{_WORD}){{0,2}}@{_LABEL}(\.{_LABEL}){{0,3}}\.[a-zA-Z]{{2,12}}",
    "ipv6": "[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){7}",
    "uri": rf"https?://{_LABEL}(\.{_LABEL}){{0,4}}(:[1-9][0-9]{{1,3}})?(/{_SEGMENT})*",
    "duration": f"P(({_DAYS}|{_MONTHS}|{_YEARS})({_TIME_SPAN})?|{_TIME_SPAN}|[0-9]{{1,4}}W)",
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(0|[1-9][0-9]{{0,3}})(#|{_POINTER})",
}
FORMATS |= {
    "idn-email": FORMATS["email"],
    "idn-hostname": FORMATS["hostname"],
    **dict.fromkeys(("uri-reference", "uri-template", "iri", "iri-reference"), FORMATS["uri"]),
}
"""Patterns that strings of a format match; every such string is valid, though not every valid one is among them."""
_UNCHECKED_FORMATS = frozenset({"password", "binary", "byte"})  # say nothing of what the string is


def list_of(schema: Mapping[str, Any], key: str, place: str) -> list[Any]:
    """The list under a keyword, none where it is absent. Raises RequestError for anything else."""
    values = schema.get(key, [])
    if not isinstance(values, list | tuple) or (key in ("anyOf", "oneOf", "enum") and key in schema and not values):
        fail(f"{key} has to be a list", place)
    return list(values)


def refuse(schema: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    """Raises RequestError where the schema has one of these keywords."""
    for key in keys:
        if key in schema:
            fail(f"{key} cannot be enforced by a grammar", place, "Leave it out.")


def fail(what: str, place: str, hint: str = "") -> NoReturn:
    """Raises the error of a schema that cannot be used. place: where in the schema, #/properties/name."""
    raise RequestError(f"The JSON schema cannot be used: {what} (at {place}).", hint)


def constants(schema: Mapping[str, Any], types: list[str], place: str) -> str:
    """The values of const or enum that fit what else the schema says. Raises Impossible where none does."""
    values = [schema["const"]] if "const" in schema else list_of(schema, "enum", place)
    if "const" in schema and "enum" in schema and schema["const"] not in list_of(schema, "enum", place):
        raise Impossible("its const is not in its enum")
    kept = []
    for value in values:
        kind = type_of(value)
        if "type" in schema and kind not in types and not (kind == "integer" and "number" in types):
            continue
        if _fits(value, schema, place):
            kept.append(literal(json_text(value)))
    if not kept:
        raise Impossible("none of its constants fits the rest of it")
    return "(" + " | ".join(dict.fromkeys(kept)) + ") space"


def _fits(value: Any, schema: Mapping[str, Any], place: str) -> bool:
    """Whether a constant meets what else the schema says, as far as it is about a text or a number."""
    if isinstance(value, str):
        text = _string_pattern(schema, place)
        if text is not None or "format" in schema:
            fail("enum or const beside pattern or format is not understood", place)
        least, most = limits(schema, "minLength", "maxLength", place)
        return least <= len(value) and (most is None or len(value) <= most)
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, low_open, high, high_open = _bounds(schema, place)
        number = Decimal(str(value))
        return (low is None or number > low or (number == low and not low_open)) and (
            high is None or number < high or (number == high and not high_open)
        )
    if isinstance(value, Mapping | list) and set(schema) & {*OF_OBJECTS, *OF_ARRAYS}:
        fail("enum or const beside keywords of objects or arrays is not understood", place)
    return True


def string_of(schema: Mapping[str, Any], place: str) -> str:
    """Texts by length, pattern or format. Raises Impossible where there are none."""
    least, most = limits(schema, "minLength", "maxLength", place)
    if most is not None and most < least:
        raise Impossible("it asks for at most fewer characters than at least")
    pattern = _string_pattern(schema, place)
    if pattern is None:
        if not least and most is None:
            return "string"
        return f'"\\"" char{times(least, most)} "\\"" space'
    fitting = limited(pattern, least, most)
    if fitting is None:
        fail(
            "this pattern or format together with minLength or maxLength cannot be enforced",
            place,
            "Write the length into the pattern, as in ^[a-z]{2,8}$.",
        )
    if impossible(fitting):
        raise Impossible("no string of its pattern is as long as it asks for")
    return f'"\\"" {string_gbnf(fitting)} "\\"" space'


def _string_pattern(schema: Mapping[str, Any], place: str) -> Node | None:
    pattern, kind = schema.get("pattern"), schema.get("format")
    if not isinstance(kind, str | None):
        fail("format has to be a text", place)
    if kind in _UNCHECKED_FORMATS:
        kind = None
    if kind is not None and kind not in FORMATS:
        known = ", ".join(FORMATS)
        fail(f"the format {kind!r} is not understood", place, f"Known are {known}; or write a pattern.")
    if pattern is not None and kind is not None:
        fail("pattern together with format cannot be enforced", place, "Leave one of them out.")
    if pattern is None and kind is None:
        return None
    if not isinstance(pattern, str | None):
        fail("pattern has to be a text", place)
    text = pattern if pattern is not None else f"^{FORMATS[str(kind)]}$"

    def fail_here(what: str) -> NoReturn:
        fail(what, place)

    return parse_pattern(text, fail_here)


def number_of(schema: Mapping[str, Any], place: str, *, whole: bool) -> str:
    """Numbers between the bounds that the schema gives. Raises Impossible where there are none."""
    if "multipleOf" in schema and not (whole and schema["multipleOf"] == 1):
        fail("multipleOf cannot be enforced by a grammar", place, "Leave it out.")
    low, low_open, high, high_open = _bounds(schema, place)
    if low is None and high is None:
        return "integer" if whole else "number"
    if whole:
        first = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
        last = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
        text = integer_gbnf(first, last)
    else:
        text = number_gbnf(low, low_open, high, high_open)
    if text is None:
        raise Impossible("no number lies between its bounds")
    return f"({text}) space"


def _bounds(schema: Mapping[str, Any], place: str) -> tuple[Decimal | None, bool, Decimal | None, bool]:
    """Lower and upper bound, each with whether it is left out itself."""
    low, high = _decimal(schema, "minimum", place), _decimal(schema, "maximum", place)
    low_open = schema.get("exclusiveMinimum") is True  # as it was written before draft 6
    high_open = schema.get("exclusiveMaximum") is True
    above = None if low_open else _decimal(schema, "exclusiveMinimum", place)
    below = None if high_open else _decimal(schema, "exclusiveMaximum", place)
    if above is not None and (low is None or above >= low):
        low, low_open = above, True
    if below is not None and (high is None or below <= high):
        high, high_open = below, True
    return low, low_open, high, high_open


def _decimal(schema: Mapping[str, Any], key: str, place: str) -> Decimal | None:
    value = schema.get(key)
    if value is None or value is False:
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("nan")
    if isinstance(value, str | bool) or not number.is_finite() or abs(number) >= 10**MOST_BOUND_DIGITS:
        fail(f"{key} is {value!r:.40}, but it has to be a number of at most {MOST_BOUND_DIGITS} digits", place)
    return number


def limits(schema: Mapping[str, Any], least_key: str, most_key: str, place: str) -> tuple[int, int | None]:
    """How few and how many of something there may be; None where there is no limit."""
    found: list[int | None] = []
    for key in (least_key, most_key):
        value = schema.get(key)
        if value is not None and not _counts(value):
            fail(f"{key} is {value!r:.40}, but it has to be a whole number from 0 up", place)
        if value is not None and value > MOST_REPETITIONS:
            fail(f"{key} is {value}, but a grammar counts to {MOST_REPETITIONS} at most", place)
        found.append(None if value is None else int(value))
    return found[0] or 0, found[1]


def type_of(value: Any) -> str:
    """The type that JSON Schema gives a value; a whole number is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return "number" if isinstance(value, float) else "string" if isinstance(value, str) else (
        "array" if isinstance(value, list) else "object"
    )  # fmt: skip


def _counts(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and value >= 0
