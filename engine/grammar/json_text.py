"""JSON as GBNF: the rules of plain JSON, and texts as JSON and GBNF spell them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_SPACE = '| " " | "\\n"{1,2} [ \\t]{0,20}'
_HEX = "[0-9a-fA-F]"
_CHAR = (
    '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2} '
    '| [dD] [89abAB] [0-9a-fA-F]{2} "\\\\u" [dD] [c-fC-F] [0-9a-fA-F]{2}))'
)
_SIMPLE_CHAR = '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" ["\\\\bfnrt]'
PRIMITIVES: dict[str, str] = {
    "space": _SPACE,
    "char": _CHAR,
    "string": '"\\"" char* "\\"" space',
    "integral-part": '"0" | [1-9] [0-9]{0,15}',
    "integer": '"-"? integral-part space',
    "number": '"-"? integral-part ("." [0-9]{1,16})? ([eE] [-+]? [0-9] [0-9]?)? space',
    "boolean": '("true" | "false") space',
    "null": '"null" space',
    "object": '"{" space (string ":" space value ("," space string ":" space value)*)? "}" space',
    "array": '"[" space (value ("," space value)*)? "]" space',
    "value": "object | array | string | number | boolean | null",
    "plain-char": _SIMPLE_CHAR,
}
_NEEDS = re.compile("|".join(sorted(map(re.escape, PRIMITIVES), key=len, reverse=True)))


def with_primitives(rules: Mapping[str, str]) -> dict[str, str]:
    """The rules, and those of plain JSON that they name."""
    out = dict(rules)
    while True:
        used = {name for text in out.values() for name in _NEEDS.findall(text)}
        missing = [name for name in PRIMITIVES if name in used and name not in out]
        if not missing:
            return out
        out.update((name, PRIMITIVES[name]) for name in missing)


def times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def literal(text: str) -> str:
    return (
        '"'
        + "".join({"\\": "\\\\", '"': '\\"'}.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
        + '"'
    )


def other_strings(names: list[str]) -> str:
    """A JSON string that is none of these. It spells no character by its number, so it cannot be one in disguise."""
    tree: dict[str, Any] = {}
    for name in names:
        inside = tree
        for unit in _units(name):
            inside = inside.setdefault(unit, {})
        inside[""] = {}

    def rest(inside: dict[str, Any]) -> str:
        """What may follow within the string, so that no name comes out."""
        nexts = {unit: below for unit, below in inside.items() if unit}
        parts = [] if "" in inside else ['""']
        for unit, below in nexts.items():
            parts.append(f"{literal(unit)} ({rest(below)})")
        plain = [unit for unit in nexts if len(unit) == 1]
        escaped = [unit[1] for unit in nexts if len(unit) == 2]
        excluded = "".join("\\" + c if c in "\\]-[" else f"\\x{ord(c):02x}" if c == "^" else c for c in plain)
        parts.append(f'[^"\\\\\\x7F\\x00-\\x1F{excluded}] plain-char*')
        letters = "".join(c if c not in '"\\' else "\\" + c for c in '"\\bfnrt' if c not in escaped)
        if letters:
            parts.append(f'"\\\\" [{letters}] plain-char*')
        return " | ".join(parts)

    return f'"\\"" ({rest(tree)}) "\\"" space'


def _units(name: str) -> list[str]:
    """A name as the characters and short escapes that a JSON string spells it with."""
    escapes = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return [escapes.get(char, char) for char in name]
