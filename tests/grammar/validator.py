"""Checks JSON values against schemas by the words of the standard: what the converter is compared with."""

from __future__ import annotations

import datetime
import re
import uuid
from typing import Any

TYPES: dict[str, Any] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
FORMATS: dict[str, Any] = {
    "date": datetime.date.fromisoformat,
    "time": lambda v: datetime.time.fromisoformat(v) if re.search("(Z|[+-][0-9]{2}:[0-9]{2})$", v) else 1 / 0,
    "date-time": datetime.datetime.fromisoformat,
    "uuid": uuid.UUID,
}


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def fits(schema: Any, value: Any, root: Any) -> bool:
    """Whether the value is valid under the schema."""
    if isinstance(schema, bool):
        return schema
    return all(_keyword(key, said, schema, value, root) for key, said in schema.items())


def _keyword(key: str, said: Any, schema: Any, value: Any, root: Any) -> bool:
    match key:
        case "type":
            return any(TYPES[kind](value) for kind in ([said] if isinstance(said, str) else said))
        case "enum":
            return any(same(value, option) for option in said)
        case "const":
            return same(value, said)
        case "$ref":
            target = root
            for part in said.split("/")[1:]:
                target = target[part]
            return fits(target, value, root)
        case "allOf":
            return all(fits(sub, value, root) for sub in said)
        case "anyOf" | "oneOf":
            return any(fits(sub, value, root) for sub in said)
    if isinstance(value, str):
        return _text(key, said, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(key, said, value)
    if isinstance(value, list):
        return _array(key, said, schema, value, root)
    return not isinstance(value, dict) or _object(key, said, schema, value, root)


def _text(key: str, said: Any, value: str) -> bool:
    match key:
        case "minLength":
            return len(value) >= said
        case "maxLength":
            return len(value) <= said
        case "pattern":
            return re.search(said, value) is not None
        case "format":
            try:
                FORMATS[said](value)
            except (ValueError, ZeroDivisionError):
                return False
    return True


def _number(key: str, said: Any, value: float) -> bool:
    match key:
        case "minimum":
            return value >= said
        case "maximum":
            return value <= said
        case "exclusiveMinimum":
            return value > said
        case "exclusiveMaximum":
            return value < said
    return True


def _array(key: str, said: Any, schema: Any, value: list[Any], root: Any) -> bool:
    match key:
        case "minItems":
            return len(value) >= said
        case "maxItems":
            return len(value) <= said
        case "prefixItems":
            return all(fits(sub, item, root) for sub, item in zip(said, value, strict=False))
        case "items":
            return all(fits(said, item, root) for item in value[len(schema.get("prefixItems", [])) :])
    return True


def _object(key: str, said: Any, schema: Any, value: dict[str, Any], root: Any) -> bool:
    match key:
        case "properties":
            return all(fits(sub, value[name], root) for name, sub in said.items() if name in value)
        case "required":
            return all(name in value for name in said)
        case "additionalProperties":
            named = schema.get("properties", {})
            return all(fits(said, item, root) for name, item in value.items() if name not in named)
    return True
