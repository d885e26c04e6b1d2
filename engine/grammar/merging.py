"""Two JSON schemas that both have to match, as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import RequestError


class Impossible(Exception):
    """Nothing can match; the message says why."""


def merge_schemas(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of what matches both. Raises Impossible where nothing does, and RequestError, naming the keyword,
    where the two cannot be written as one."""
    out = dict(one)
    key = ""
    try:
        for key, value in other.items():
            if key not in out or out[key] == value:
                out[key] = value
            elif key in _MERGERS:
                out[key] = _MERGERS[key](out[key], value)
            else:
                raise RequestError(f"two different values of {key} are combined, which cannot be enforced")
        if "properties" in one or "properties" in other:
            key = "properties"
            out[key] = _properties(one, other)
    except (TypeError, AttributeError):  # a list where a number belongs, and the like
        raise RequestError(f"{key} holds what does not belong there") from None
    return out


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Each property has to match what both say of it, by name or under additionalProperties."""
    out: dict[str, Any] = {}
    for key in dict.fromkeys((*one.get("properties", {}), *other.get("properties", {}))):
        said = [_said(schema, key) for schema in (one, other)]
        told = [what for what in said if what is not None and what is not True]
        if any(what is False for what in told):
            out[key] = False
        else:
            out[key] = told[0] if len(told) == 1 else {"allOf": told} if told else True
    return out


def _said(schema: Mapping[str, Any], key: str) -> Any:
    if key in schema.get("properties", {}):
        return schema["properties"][key]
    return schema.get("additionalProperties")


def _types(one: Any, other: Any) -> Any:
    first, second = ([kinds] if isinstance(kinds, str) else kinds for kinds in (one, other))
    both = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    both += [kind for kind in second if kind == "integer" and "number" in first and kind not in both]
    if not both:
        raise Impossible(f"nothing is both {one} and {other}")
    return both[0] if len(both) == 1 else both


def _enums(one: Any, other: Any) -> Any:
    both = [value for value in one if value in other]
    if not both:
        raise Impossible("two lists of constants share none")
    return both


def _constants(one: Any, other: Any) -> Any:
    raise Impossible(f"nothing is both {one!r} and {other!r}")


def _schemas(one: Any, other: Any) -> Any:
    if one is False or other is False:
        return False
    return other if one is True else one if other is True else {"allOf": [one, other]}


_MERGERS: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _enums,
    "const": _constants,
    "required": lambda one, other: list(dict.fromkeys((*one, *other))),
    "properties": lambda one, other: {**one, **other},
    "additionalProperties": _schemas,
    "items": _schemas,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
