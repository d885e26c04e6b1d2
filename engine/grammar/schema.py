"""JSON Schema as a GBNF grammar, in the dialect of llama.cpp where the standard leaves room.

Objects hold no more properties than they name unless additionalProperties allows more; required ones come first, then
optional ones, each in the schema's order; between the parts stands little white space or none. `oneOf` is read as
`anyOf`. What a grammar cannot enforce is an error that names it, and never silently left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn
from urllib.parse import unquote

from engine.errors import RequestError
from engine.grammar.gbnf import MOST_REPETITIONS
from engine.grammar.merging import Impossible, merge_schemas
from engine.grammar.numbers import integer_gbnf, number_gbnf
from engine.grammar.pattern import lengths, parse_pattern, string_gbnf
from engine.grammar.syntax import Node

Schema = Mapping[str, Any] | bool

_SPACE = '| " " | "\\n"{1,2} [ \\t]{0,20}'
_HEX = "[0-9a-fA-F]"
_CHAR = (
    '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2} '
    '| [dD] [89abAB] [0-9a-fA-F]{2} "\\\\u" [dD] [c-fC-F] [0-9a-fA-F]{2}))'
)
_SIMPLE_CHAR = '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" ["\\\\bfnrt]'
_PRIMITIVES: dict[str, str] = {
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
_NEEDS = re.compile("|".join(sorted(map(re.escape, _PRIMITIVES), key=len, reverse=True)))

_YEAR = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = r"(([0-9]{2}(0[48]|[2468][048]|[13579][26]))|((0[48]|[2468][048]|[13579][26])00))"
_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    rf"|{_LEAP}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_WORD = "[a-zA-Z0-9_%+-]{1,32}"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
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
    "uri": rf"https?://{_LABEL}(\.{_LABEL}){{0,4}}(:[1-9][0-9]{{1,3}})?(/[a-zA-Z0-9_.~-]*)*",
}
"""Patterns that strings of a format match; every such string is valid, though not every valid one is among them."""
_UNCHECKED_FORMATS = frozenset({"password", "binary", "byte"})  # say nothing of what the string is

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
     "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "id"}
)  # fmt: skip
_BEYOND_GRAMMARS = ("not", "if", "$dynamicRef", "$recursiveRef")
_OF_OBJECTS = ("properties", "required", "additionalProperties", "patternProperties", "propertyNames",
               "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
               "unevaluatedProperties")  # fmt: skip
_OF_ARRAYS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains",
              "unevaluatedItems")  # fmt: skip
_OF_STRINGS = ("minLength", "maxLength", "pattern", "format")
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_ALL_TYPES = ("object", "array", "string", "number", "boolean", "null")


def schema_gbnf(schema: Schema | str) -> str:
    """The grammar of the JSON texts that the schema describes; a text is a schema written as JSON.

    Raises RequestError, naming the place within the schema, for what is no schema, cannot be enforced by a grammar, or
    describes nothing.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"The JSON schema is not JSON: {error}.") from None
    if not isinstance(schema, Mapping | bool):
        raise RequestError("The JSON schema has to be an object.")
    try:
        return _Converter(schema).grammar()
    except RecursionError:
        raise RequestError("The JSON schema is nested too deeply.") from None


class _Converter:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def grammar(self) -> str:
        root = self._root
        if isinstance(root, Mapping) and not set(root) - _ANNOTATIONS:
            body = "object"  # {} stands for any object, as for llama.cpp
        else:
            try:
                body = self._visit(root, "", "#")
            except Impossible as reason:
                self._fail(str(reason), "#")
        rules = {"root": body, **self._rules}
        while True:
            used = {name for text in rules.values() for name in _NEEDS.findall(text)}
            missing = [name for name in _PRIMITIVES if name in used and name not in rules]
            if not missing:
                break
            rules.update((name, _PRIMITIVES[name]) for name in missing)
        return "".join(f"{name} ::= {text}\n" for name, text in rules.items())

    # Schemas of every kind. Each method returns GBNF, mostly the name of a rule.

    def _visit(self, schema: Any, name: str, place: str) -> str:
        """Raises Impossible where nothing matches."""
        if schema is True:
            return "value"
        if schema is False:
            raise Impossible("nothing matches it")
        if not isinstance(schema, Mapping):
            self._fail("a schema has to be an object, true or false", place)
        known = json.dumps(schema, sort_keys=True, default=str)
        if known in self._known:
            return self._known[known]
        rule = self._known[known] = self._new_name(name)
        self._rules[rule] = ""  # keeps the name; what refers back to the schema meanwhile refers to the rule
        try:
            self._rules[rule] = self._body(schema, rule, place)
        except Impossible:
            self._rules[rule] = f'"-" {rule}'  # matches nothing; what refers to it is dropped with it
            del self._known[known]
            raise
        return rule

    def _body(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        self._refuse(schema, _BEYOND_GRAMMARS, place)
        own = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        if set(own) == {"$ref"}:
            found = self._visit(self._resolve(own["$ref"], place), self._ref_name(own["$ref"]), own["$ref"])
            if found == name:
                self._fail(f"{own['$ref']} refers back to itself without an object or array between", place)
            return found
        if len(own) == 1 and (key := next(iter(own))) in ("anyOf", "oneOf"):
            return self._union(
                [
                    self._visitor(sub, f"{name}-{i}", f"{place}/{key}/{i}")
                    for i, sub in enumerate(self._list(own, key, place))
                ]
            )
        alternatives = self._alternatives(own, place, ())
        if len(alternatives) == 1:
            return self._plain(alternatives[0], name, place)
        return self._union([self._visitor(sub, f"{name}-{i}", place) for i, sub in enumerate(alternatives)])

    def _visitor(self, schema: Any, name: str, place: str) -> Callable[[], str]:
        return lambda: self._visit(schema, name, place)

    def _union(self, choices: Sequence[Callable[[], str]]) -> str:
        parts, reason = [], Impossible("nothing matches it")
        for choice in choices:
            try:
                part = choice()
            except Impossible as error:
                reason = error
                continue
            if part not in parts:
                parts.append(part)
        if not parts:
            raise reason
        return " | ".join(parts)

    def _alternatives(self, schema: Any, place: str, inside: tuple[str, ...]) -> list[dict[str, Any]]:
        """The schema without $ref, allOf, anyOf and oneOf: schemas of which one has to match."""
        if isinstance(schema, bool):
            return [{}] if schema else []
        if not isinstance(schema, Mapping):
            self._fail("a schema has to be an object, true or false", place)
        self._refuse(schema, _BEYOND_GRAMMARS, place)
        combined = ("$ref", "allOf", "anyOf", "oneOf")
        found = [{k: v for k, v in schema.items() if k not in combined and k not in _ANNOTATIONS}]
        if "$ref" in schema:
            ref = schema["$ref"]
            if ref in inside:
                self._fail(f"{ref} refers back to itself without an object or array between", place)
            found = self._both(found, self._alternatives(self._resolve(ref, place), ref, (*inside, ref)), place)
        for i, sub in enumerate(self._list(schema, "allOf", place)):
            found = self._both(found, self._alternatives(sub, f"{place}/allOf/{i}", inside), place)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                choices: list[dict[str, Any]] = []
                for i, sub in enumerate(self._list(schema, key, place)):
                    with suppress(Impossible):
                        choices += self._alternatives(sub, f"{place}/{key}/{i}", inside)
                found = self._both(found, choices, place)
        return found

    def _both(self, some: list[dict[str, Any]], others: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
        if len(some) * len(others) > 500:
            self._fail("its combinations of anyOf and allOf are too many", place)
        found, reason = [], None
        for one in some:
            for other in others:
                try:
                    found.append(merge_schemas(one, other))
                except Impossible as error:
                    reason = error
                except RequestError as error:
                    self._fail(error.message, place)
        if not found:
            raise reason or Impossible("nothing matches it")
        return found

    # A schema without combinations

    def _plain(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        types = self._types(schema, place)
        if "const" in schema or "enum" in schema:
            return self._constants(schema, types, place)
        makers: dict[str, Callable[[], str]] = {
            "object": lambda: self._object(schema, name, place),
            "array": lambda: self._array(schema, name, place),
            "string": lambda: self._string(schema, place),
            "number": lambda: self._number(schema, place, whole=False),
            "integer": lambda: self._number(schema, place, whole=True),
            "boolean": lambda: "boolean",
            "null": lambda: "null",
        }
        if set(types) == set(_ALL_TYPES) and not set(schema) & {*_OF_OBJECTS, *_OF_ARRAYS, *_OF_STRINGS, *_OF_NUMBERS}:
            return "value"
        if len(types) == 1:
            return makers[types[0]]()
        return self._union([self._part(makers[kind], f"{name}-{kind}") for kind in types])

    def _part(self, make: Callable[[], str], name: str) -> Callable[[], str]:
        def choice() -> str:
            body = make()
            if body in _PRIMITIVES:
                return body
            rule = self._new_name(name)
            self._rules[rule] = body
            return rule

        return choice

    def _types(self, schema: Mapping[str, Any], place: str) -> list[str]:
        given = schema.get("type")
        if given is not None:
            types = [given] if isinstance(given, str) else list(given) if isinstance(given, list) else [None]
            for kind in types:
                if kind not in (*_ALL_TYPES, "integer"):
                    self._fail(f"{kind!r} is no type", place)
            return [kind for kind in dict.fromkeys(types) if kind != "integer" or "number" not in types]
        kinds = {"object": _OF_OBJECTS, "array": _OF_ARRAYS, "string": _OF_STRINGS, "number": _OF_NUMBERS}
        found = [kind for kind, keys in kinds.items() if any(key in schema for key in keys)]
        return found or list(_ALL_TYPES)

    def _constants(self, schema: Mapping[str, Any], types: list[str], place: str) -> str:
        values = [schema["const"]] if "const" in schema else self._list(schema, "enum", place)
        if "const" in schema and "enum" in schema and schema["const"] not in self._list(schema, "enum", place):
            raise Impossible("its const is not in its enum")
        kept = []
        for value in values:
            kind = _type_of(value)
            if "type" in schema and kind not in types and not (kind == "integer" and "number" in types):
                continue
            if self._fits(value, schema, place):
                kept.append(_literal(_json(value)))
        if not kept:
            raise Impossible("none of its constants fits the rest of it")
        return "(" + " | ".join(dict.fromkeys(kept)) + ") space"

    def _fits(self, value: Any, schema: Mapping[str, Any], place: str) -> bool:
        """Whether a constant meets what else the schema says, as far as it is about a text or a number."""
        if isinstance(value, str):
            text = self._string_pattern(schema, place)
            if text is not None or "format" in schema:
                self._fail("enum or const beside pattern or format is not understood", place)
            least, most = self._limits(schema, "minLength", "maxLength", place)
            return least <= len(value) and (most is None or len(value) <= most)
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, low_open, high, high_open = self._bounds(schema, place)
            number = Decimal(str(value))
            return (low is None or number > low or (number == low and not low_open)) and (
                high is None or number < high or (number == high and not high_open)
            )
        if isinstance(value, Mapping | list) and set(schema) & {*_OF_OBJECTS, *_OF_ARRAYS}:
            self._fail("enum or const beside keywords of objects or arrays is not understood", place)
        return True

    def _object(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        self._refuse(schema, ("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"), place)
        if schema.get("patternProperties"):
            self._refuse(schema, ("patternProperties",), place)
        if schema.get("unevaluatedProperties") not in (None, False, True):
            self._refuse(schema, ("unevaluatedProperties",), place)
        properties = schema.get("properties", {})
        required = self._list(schema, "required", place)
        if not isinstance(properties, Mapping) or not all(isinstance(key, str) for key in required):
            self._fail("properties has to be an object, and required a list of names", place)
        more = schema.get("additionalProperties", "properties" not in schema)
        properties = {**properties, **{key: more for key in required if key not in properties}}
        pairs: dict[str, str] = {}
        for key, sub in properties.items():
            try:
                value = self._visit(sub, f"{name}-{key}", f"{place}/properties/{_pointer(key)}")
            except Impossible as reason:
                if key in required:
                    raise Impossible(f"its required property {key!r} is not possible: {reason}") from None
                continue
            pairs[key] = self._rule(f"{name}-{key}-kv", f'{_literal(_json(key))} space ":" space {value}')
        extra = self._additional(more, properties, name, place)
        self._check_counts(schema, sum(key in required for key in pairs), len(pairs), extra is not None, place)
        first = [pairs[key] for key in pairs if key in required]
        optional = [pairs[key] for key in pairs if key not in required]
        return f'"{{" space {self._members(first, optional, extra, name)} "}}" space'

    def _additional(self, more: Any, properties: Mapping[str, Any], name: str, place: str) -> str | None:
        """The rule of a property that has no name of its own, if there may be some."""
        if more is False:
            return None
        try:
            value = self._visit(more, f"{name}-additional-value", f"{place}/additionalProperties")
        except Impossible:
            return None
        key = self._rule(f"{name}-additional-k", _other_strings(list(properties))) if properties else "string"
        return self._rule(f"{name}-additional-kv", f'{key} ":" space {value}')

    def _members(self, first: list[str], optional: list[str], extra: str | None, name: str) -> str:
        rest = f'("," space {extra})*' if extra else ""
        rests = [rest]  # what may follow, from the last optional member to the first
        for pair in reversed(optional):
            follow = f'("," space {pair})? {rests[-1]}'.rstrip()
            rests.append(self._rule(f"{name}-rest", follow))
        rests.reverse()
        if first:
            return ' "," space '.join(first) + f" {rests[0]}"
        starts = [f"{pair} {rests[i + 1]}".rstrip() for i, pair in enumerate(optional)]
        starts += [f"{extra} {rest}"] if extra else []
        return f"({' | '.join(starts)})?" if starts else ""

    def _check_counts(self, schema: Mapping[str, Any], n_required: int, n_named: int, open_: bool, place: str) -> None:
        least, most = self._limits(schema, "minProperties", "maxProperties", place)
        if least > n_required or (most is not None and (open_ or most < n_named)):
            keyword = "minProperties" if least > n_required else "maxProperties"
            self._fail(f"{keyword} cannot be enforced here", place, "Say which properties are required.")

    def _array(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        least, most = self._limits(schema, "minItems", "maxItems", place)
        self._refuse(schema, ("contains",), place)
        if schema.get("uniqueItems") and (most is None or most > 1):
            self._fail("uniqueItems cannot be enforced by a grammar", place, "Leave it out.")
        if schema.get("unevaluatedItems") not in (None, False, True):
            self._refuse(schema, ("unevaluatedItems",), place)
        prefix, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(rest, list):  # as it was written before prefixItems
            prefix, rest = rest, schema.get("additionalItems", False)
        elif prefix and "items" not in schema:
            rest = False  # as for llama.cpp: a tuple is whole
        if not isinstance(prefix, list):
            self._fail("prefixItems has to be a list", place)
        if prefix and "minItems" not in schema:
            least = len(prefix) if most is None else min(len(prefix), most)
        if most is not None and most < least:
            raise Impossible("it asks for at most fewer items than at least")
        heads = []
        for i, sub in enumerate(prefix[:most]):
            try:
                heads.append(self._visit(sub, f"{name}-tuple-{i}", f"{place}/prefixItems/{i}"))
            except Impossible:
                if len(heads) < least:
                    raise
                most = len(heads)
                break
        item = None
        if most is None or most > len(heads):
            try:
                item = None if rest is False else self._visit(rest, f"{name}-item", f"{place}/items")
            except Impossible:
                item = None
        if item is None and least > len(heads):
            raise Impossible("it asks for more items than it has")
        return f'"[" space {self._elements(heads, item, least, most)} "]" space'

    def _elements(self, heads: list[str], item: str | None, least: int, most: int | None) -> str:
        """Elements with commas between: the heads in order, then items."""
        n = len(heads)
        if item is None:
            text = ""
        elif n:
            text = f'("," space {item})' + _times(max(least - n, 0), None if most is None else most - n)
        else:
            text = f'{item} ("," space {item})' + _times(max(least - 1, 0), None if most is None else most - 1)
            if most == 0:
                return ""
            return text if least else f"({text})?"
        for i in reversed(range(n)):
            text = f"{heads[i]} {text}".rstrip() if i == 0 else f'"," space {heads[i]} {text}'.rstrip()
            if i >= least:
                text = f"({text})?"
        return text

    # Texts and numbers

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = self._limits(schema, "minLength", "maxLength", place)
        if most is not None and most < least:
            raise Impossible("it asks for at most fewer characters than at least")
        pattern = self._string_pattern(schema, place)
        if pattern is None:
            if not least and most is None:
                return "string"
            return f'"\\"" char{_times(least, most)} "\\"" space'
        shortest, longest = lengths(pattern)
        if shortest < least or (most is not None and (longest is None or longest > most)):
            self._fail(
                "pattern or format together with minLength or maxLength cannot be enforced",
                place,
                "Write the length into the pattern, as in ^[a-z]{2,8}$.",
            )
        return f'"\\"" {string_gbnf(pattern)} "\\"" space'

    def _string_pattern(self, schema: Mapping[str, Any], place: str) -> Node | None:
        pattern, kind = schema.get("pattern"), schema.get("format")
        if kind in _UNCHECKED_FORMATS:
            kind = None
        if kind is not None and kind not in FORMATS:
            known = ", ".join(FORMATS)
            self._fail(f"the format {kind!r} is not understood", place, f"Known are {known}; or write a pattern.")
        if pattern is not None and kind is not None:
            self._fail("pattern together with format cannot be enforced", place, "Leave one of them out.")
        if pattern is None and kind is None:
            return None
        if not isinstance(pattern, str | None):
            self._fail("pattern has to be a text", place)
        text = pattern if pattern is not None else f"^{FORMATS[str(kind)]}$"

        def fail(what: str) -> NoReturn:
            self._fail(what, place)

        return parse_pattern(text, fail)

    def _number(self, schema: Mapping[str, Any], place: str, *, whole: bool) -> str:
        if "multipleOf" in schema and not (whole and schema["multipleOf"] == 1):
            self._fail("multipleOf cannot be enforced by a grammar", place, "Leave it out.")
        low, low_open, high, high_open = self._bounds(schema, place)
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

    def _bounds(self, schema: Mapping[str, Any], place: str) -> tuple[Decimal | None, bool, Decimal | None, bool]:
        """Lower and upper bound, each with whether it is left out itself."""
        low, high = self._decimal(schema, "minimum", place), self._decimal(schema, "maximum", place)
        low_open = schema.get("exclusiveMinimum") is True  # as it was written before draft 6
        high_open = schema.get("exclusiveMaximum") is True
        above = None if low_open else self._decimal(schema, "exclusiveMinimum", place)
        below = None if high_open else self._decimal(schema, "exclusiveMaximum", place)
        if above is not None and (low is None or above >= low):
            low, low_open = above, True
        if below is not None and (high is None or below <= high):
            high, high_open = below, True
        return low, low_open, high, high_open

    def _decimal(self, schema: Mapping[str, Any], key: str, place: str) -> Decimal | None:
        value = schema.get(key)
        if value is None or value is False:
            return None
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            number = Decimal("nan")
        if isinstance(value, str | bool) or not number.is_finite() or abs(number) >= 10**18:
            self._fail(f"{key} is {value!r:.40}, but it has to be a number of less than 19 digits", place)
        return number

    def _limits(self, schema: Mapping[str, Any], least_key: str, most_key: str, place: str) -> tuple[int, int | None]:
        found: list[int | None] = []
        for key in (least_key, most_key):
            value = schema.get(key)
            if value is not None and not _counts(value):
                self._fail(f"{key} is {value!r:.40}, but it has to be a whole number from 0 up", place)
            if value is not None and value > MOST_REPETITIONS:
                self._fail(f"{key} is {value}, but a grammar counts to {MOST_REPETITIONS} at most", place)
            found.append(None if value is None else int(value))
        return found[0] or 0, found[1]

    # Names and places

    def _resolve(self, ref: Any, place: str) -> Any:
        if not isinstance(ref, str) or not ref.startswith("#"):
            self._fail(
                f"$ref is {ref!r:.80}, but only places within the schema such as #/$defs/name can be read", place
            )
        target: Any = self._root
        for part in unquote(ref[1:]).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                self._fail(f"$ref is {ref!r:.80}, but there is nothing at that place", place)
        if len(ref) > 1 and not ref.startswith("#/"):
            self._fail(
                f"$ref is {ref!r:.80}, but only places within the schema such as #/$defs/name can be read", place
            )
        return target

    def _ref_name(self, ref: str) -> str:
        return "ref-" + ref.rpartition("/")[2]

    def _new_name(self, name: str) -> str:
        base = re.sub("[^a-zA-Z0-9-]+", "-", name).strip("-")[:60] or "answer"
        if base in _PRIMITIVES or base == "root":
            base += "-of-schema"
        found, n = base, 0
        while found in self._rules:
            n += 1
            found = f"{base}-{n}"
        return found

    def _rule(self, name: str, body: str) -> str:
        rule = self._new_name(name)
        self._rules[rule] = body
        return rule

    def _list(self, schema: Mapping[str, Any], key: str, place: str) -> list[Any]:
        values = schema.get(key, [])
        if not isinstance(values, list | tuple) or (key in ("anyOf", "oneOf", "enum") and key in schema and not values):
            self._fail(f"{key} has to be a list", place)
        return list(values)

    def _refuse(self, schema: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
        for key in keys:
            if key in schema:
                self._fail(f"{key} cannot be enforced by a grammar", place, "Leave it out.")

    def _fail(self, what: str, place: str, hint: str = "") -> NoReturn:
        raise RequestError(f"The JSON schema cannot be used: {what} (at {place}).", hint)


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _counts(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    return "number" if isinstance(value, float) else "string" if isinstance(value, str) else (
        "array" if isinstance(value, list) else "object"
    )  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _literal(text: str) -> str:
    return (
        '"'
        + "".join({"\\": "\\\\", '"': '\\"'}.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
        + '"'
    )


def _other_strings(names: list[str]) -> str:
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
            parts.append(f"{_literal(unit)} ({rest(below)})")
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
