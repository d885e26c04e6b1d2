"""JSON Schema as a GBNF grammar, in the dialect of llama.cpp where the standard leaves room.

Objects hold no more properties than they name unless additionalProperties allows more; required ones come first, then
optional ones, each in the schema's order; between the parts stands little white space or none. `oneOf` is read as
`anyOf`. What a grammar cannot enforce is an error that names it, and never silently left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from engine.errors import RequestError
from engine.grammar.json_text import PRIMITIVES, json_text, literal, other_strings, times, with_primitives
from engine.grammar.merging import Impossible, merge_schemas
from engine.grammar.schema_values import (
    OF_ARRAYS,
    OF_NUMBERS,
    OF_OBJECTS,
    OF_STRINGS,
    constants,
    fail,
    limits,
    list_of,
    number_of,
    refuse,
    string_of,
)

Schema = Mapping[str, Any] | bool

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
     "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "id"}
)  # fmt: skip
_BEYOND_GRAMMARS = ("not", "if", "$dynamicRef", "$recursiveRef")
_ALL_TYPES = ("object", "array", "string", "number", "boolean", "null")


def schema_gbnf(schema: Schema | str) -> str:
    """The grammar of the JSON texts that the schema describes; a text is a schema written as JSON.

    Raises RequestError, naming the place within the schema, for what is no schema, cannot be enforced by a grammar, or
    describes nothing.
    """
    try:
        schema = json.loads(schema if isinstance(schema, str) else json.dumps(schema))
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
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
        self._begun: list[str] = []  # rules in the making, from the last bracket on

    def grammar(self) -> str:
        root = self._root
        if root == {}:
            body = "object"  # {} stands for any object, as for llama.cpp
        else:
            try:
                body = self._visit(root, "", "#")
            except Impossible as reason:
                fail(str(reason), "#")
        rules = with_primitives({"root": body, **self._rules})
        return "".join(f"{name} ::= {text}\n" for name, text in rules.items())

    # Schemas of every kind. Each method returns GBNF, mostly the name of a rule.

    def _visit(self, schema: Any, name: str, place: str) -> str:
        """Raises Impossible where nothing matches."""
        if schema is True:
            return "value"
        if schema is False:
            raise Impossible("nothing matches it")
        if not isinstance(schema, Mapping):
            fail("a schema has to be an object, true or false", place)
        known = json.dumps(schema, sort_keys=True, default=str)
        if known in self._known:
            if self._known[known] in self._begun:
                fail("it refers back to itself without an object or array between", place)
            return self._known[known]
        rule = self._known[known] = self._new_name(name)
        self._rules[rule] = ""  # keeps the name; what refers back to the schema meanwhile refers to the rule
        self._begun.append(rule)
        try:
            self._rules[rule] = self._body(schema, rule, place)
        except Impossible:
            self._rules[rule] = f'"-" {rule}'  # matches nothing; what refers to it is dropped with it
            del self._known[known]
            raise
        finally:
            self._begun.remove(rule)
        return rule

    def _body(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        refuse(schema, _BEYOND_GRAMMARS, place)
        own = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        if set(own) == {"$ref"}:
            found = self._visit(self._resolve(own["$ref"], place), self._ref_name(own["$ref"]), own["$ref"])
            if found == name:
                fail(f"{own['$ref']} refers back to itself without an object or array between", place)
            return found
        if len(own) == 1 and (key := next(iter(own))) in ("anyOf", "oneOf"):
            return self._union(
                [
                    self._visitor(sub, f"{name}-{i}", f"{place}/{key}/{i}")
                    for i, sub in enumerate(list_of(own, key, place))
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
            fail("a schema has to be an object, true or false", place)
        refuse(schema, _BEYOND_GRAMMARS, place)
        combined = ("$ref", "allOf", "anyOf", "oneOf")
        found = [{k: v for k, v in schema.items() if k not in combined and k not in _ANNOTATIONS}]
        if "$ref" in schema:
            ref = schema["$ref"]
            if ref in inside:
                fail(f"{ref} refers back to itself without an object or array between", place)
            found = self._both(found, self._alternatives(self._resolve(ref, place), ref, (*inside, ref)), place)
        for i, sub in enumerate(list_of(schema, "allOf", place)):
            found = self._both(found, self._alternatives(sub, f"{place}/allOf/{i}", inside), place)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                choices: list[dict[str, Any]] = []
                for i, sub in enumerate(list_of(schema, key, place)):
                    with suppress(Impossible):
                        choices += self._alternatives(sub, f"{place}/{key}/{i}", inside)
                found = self._both(found, choices, place)
        return found

    def _both(self, some: list[dict[str, Any]], others: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
        if len(some) * len(others) > 500:
            fail("its combinations of anyOf and allOf are too many", place)
        found, reason = [], None
        for one in some:
            for other in others:
                try:
                    found.append(merge_schemas(one, other))
                except Impossible as error:
                    reason = error
                except RequestError as error:
                    fail(error.message, place)
        if not found:
            raise reason or Impossible("nothing matches it")
        return found

    # A schema without combinations

    def _plain(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        types = self._types(schema, place)
        if "const" in schema or "enum" in schema:
            return constants(schema, types, place)
        makers: dict[str, Callable[[], str]] = {
            "object": lambda: self._bracketed(lambda: self._object(schema, name, place)),
            "array": lambda: self._bracketed(lambda: self._array(schema, name, place)),
            "string": lambda: string_of(schema, place),
            "number": lambda: number_of(schema, place, whole=False),
            "integer": lambda: number_of(schema, place, whole=True),
            "boolean": lambda: "boolean",
            "null": lambda: "null",
        }
        if set(types) == set(_ALL_TYPES) and not set(schema) & {*OF_OBJECTS, *OF_ARRAYS, *OF_STRINGS, *OF_NUMBERS}:
            return "value"
        if len(types) == 1:
            return makers[types[0]]()
        return self._union([self._part(makers[kind], f"{name}-{kind}") for kind in types])

    def _bracketed(self, make: Callable[[], str]) -> str:
        begun, self._begun = self._begun, []
        try:
            return make()
        finally:
            self._begun = begun

    def _part(self, make: Callable[[], str], name: str) -> Callable[[], str]:
        def choice() -> str:
            body = make()
            if body in PRIMITIVES:
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
                    fail(f"{kind!r} is no type", place)
            return [kind for kind in dict.fromkeys(types) if kind != "integer" or "number" not in types]
        kinds = {"object": OF_OBJECTS, "array": OF_ARRAYS, "string": OF_STRINGS, "number": OF_NUMBERS}
        found = [kind for kind, keys in kinds.items() if any(key in schema for key in keys)]
        return found or list(_ALL_TYPES)

    def _object(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        refuse(schema, ("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"), place)
        if schema.get("patternProperties"):
            refuse(schema, ("patternProperties",), place)
        if schema.get("unevaluatedProperties") not in (None, False, True):
            refuse(schema, ("unevaluatedProperties",), place)
        properties = schema.get("properties", {})
        required = list_of(schema, "required", place)
        if not isinstance(properties, Mapping) or not all(isinstance(key, str) for key in required):
            fail("properties has to be an object, and required a list of names", place)
        more = schema.get("additionalProperties", "properties" not in schema)
        # that an object has no others than it names is this dialect's choice; what it requires by name it may have
        unnamed = schema.get("additionalProperties", True)
        properties = {**properties, **{key: unnamed for key in required if key not in properties}}
        pairs: dict[str, str] = {}
        for key, sub in properties.items():
            try:
                value = self._visit(sub, f"{name}-{key}", f"{place}/properties/{pointer_part(key)}")
            except Impossible as reason:
                if key in required:
                    raise Impossible(f"its required property {key!r} is not possible: {reason}") from None
                continue
            pairs[key] = self._rule(f"{name}-{key}-kv", f'{literal(json_text(key))} space ":" space {value}')
        extra = self._additional(more, properties, name, place)
        first = [pairs[key] for key in pairs if key in required]
        optional = [pairs[key] for key in pairs if key not in required]
        counts = self._counts(schema, len(first), len(optional), extra is not None, place)
        return f'"{{" space {self._members(first, optional, extra, counts, name)} "}}" space'

    def _additional(self, more: Any, properties: Mapping[str, Any], name: str, place: str) -> str | None:
        """The rule of a property that has no name of its own, if there may be some."""
        if more is False:
            return None
        try:
            value = self._visit(more, f"{name}-additional-value", f"{place}/additionalProperties")
        except Impossible:
            return None
        key = self._rule(f"{name}-additional-k", other_strings(list(properties))) if properties else "string"
        return self._rule(f"{name}-additional-kv", f'{key} ":" space {value}')

    def _members(
        self, first: list[str], optional: list[str], extra: str | None, counts: tuple[int, int | None], name: str
    ) -> str:
        """counts: of members that are not required."""
        least, most = counts
        if not optional:
            if extra is None or most == 0:
                return ' "," space '.join(first)
            if not first:
                return self._elements([], extra, least, most)
            return ' "," space '.join(first) + f' ("," space {extra}){times(least, most)}'
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
        return f"({' | '.join(starts)}){'' if least else '?'}"

    def _counts(
        self, schema: Mapping[str, Any], n_required: int, n_optional: int, open_: bool, place: str
    ) -> tuple[int, int | None]:
        """How many members there may be beside the required ones."""
        least, most = limits(schema, "minProperties", "maxProperties", place)
        least, most = max(least - n_required, 0), None if most is None else most - n_required
        if (most is not None and most < least) or (least > n_optional and not open_):
            raise Impossible("its number of properties is not possible")
        if n_optional:
            if least > 1 or (least and n_required):
                fail("minProperties cannot be enforced here", place, "Say which properties are required.")
            if most is not None and (open_ or most < n_optional):
                fail("maxProperties cannot be enforced here", place, "Name fewer properties.")
        return least, most

    def _array(self, schema: Mapping[str, Any], name: str, place: str) -> str:
        least, most = limits(schema, "minItems", "maxItems", place)
        refuse(schema, ("contains",), place)
        if schema.get("uniqueItems") and (most is None or most > 1):
            fail("uniqueItems cannot be enforced by a grammar", place, "Leave it out.")
        if schema.get("unevaluatedItems") not in (None, False, True):
            refuse(schema, ("unevaluatedItems",), place)
        prefix, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(prefix, Mapping):  # llama.cpp takes one schema there for that of the items
            prefix, rest = [], schema.get("items", prefix)
        if isinstance(rest, list):  # as it was written before prefixItems
            prefix, rest = rest, schema.get("additionalItems", False)
        elif prefix and "items" not in schema:
            rest = False  # as for llama.cpp: a tuple is whole
        if not isinstance(prefix, list):
            fail("prefixItems has to be a list", place)
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
            text = f'("," space {item})' + times(max(least - n, 0), None if most is None else most - n)
        else:
            text = f'{item} ("," space {item})' + times(max(least - 1, 0), None if most is None else most - 1)
            if most == 0:
                return ""
            return text if least else f"({text})?"
        for i in reversed(range(n)):
            text = f"{heads[i]} {text}".rstrip() if i == 0 else f'"," space {heads[i]} {text}'.rstrip()
            if i >= least:
                text = f"({text})?"
        return text

    # Names and places

    def _resolve(self, ref: Any, place: str) -> Any:
        if not isinstance(ref, str) or not ref.startswith("#"):
            fail(f"$ref is {ref!r:.80}, but only places within the schema such as #/$defs/name can be read", place)
        target: Any = self._root
        for part in unquote(ref[1:]).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                fail(f"$ref is {ref!r:.80}, but there is nothing at that place", place)
        if len(ref) > 1 and not ref.startswith("#/"):
            fail(f"$ref is {ref!r:.80}, but only places within the schema such as #/$defs/name can be read", place)
        return target

    def _ref_name(self, ref: str) -> str:
        return "ref-" + ref.rpartition("/")[2]

    def _new_name(self, name: str) -> str:
        base = re.sub("[^a-zA-Z0-9-]+", "-", name).strip("-")[:60] or "answer"
        if base in PRIMITIVES or base == "root":
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


def pointer_part(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
