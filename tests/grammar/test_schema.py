"""JSON of a schema's grammar is valid under the schema, and values that are valid can be written."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar import CompiledGrammar, schema_gbnf
from engine.grammar.numbers import integer_gbnf, number_gbnf
from tests.grammar.spelling import Spelled
from tests.grammar.test_masks import allowed_ids
from tests.grammar.validator import fits

PIECES = ['{"', '":', '",', '"}', "}]", '": "', "true", "null", "12", "3.5", "ab", "é", "\\u00", "\n  ", "[]", "xyz"]
SPELLING = Spelled([*(piece.encode() for piece in PIECES), *(bytes([byte]) for byte in range(256))])
ENDINGS = {SPELLING.texts.index(text) for text in (b'"', b"}", b"]", b'"}', b"}]", b'",', b'":')}


def compiled(schema: Any) -> CompiledGrammar:
    return CompiledGrammar(schema_gbnf(schema), SPELLING, SPELLING.n_vocab)


def walked(grammar: CompiledGrammar, draw: random.Random) -> str | None:
    """A random text of the grammar, or None where it grew too long; what closes something is drawn more often."""
    constraint, out = grammar.start(), b""
    for _ in range(1500):
        tokens = allowed_ids(constraint, SPELLING.n_vocab)
        assert tokens, out
        if SPELLING.end in tokens and (len(tokens) == 1 or draw.random() < 0.5):
            return out.decode()
        closing = sorted(tokens & ENDINGS)
        token = draw.choice(closing if closing and draw.random() < 0.4 else sorted(tokens - {SPELLING.end}))
        constraint.accept(token)
        out += SPELLING.texts[token]
    return None


def accepts(grammar: CompiledGrammar, text: str) -> bool:
    constraint = grammar.start()
    for byte in text.encode():
        token = SPELLING.texts.index(bytes([byte]))
        if not constraint.permits(token):
            return False
        constraint.accept(token)
    return constraint.may_end


names = st.sampled_from(["a", "ab", "b", 'q"', "back\\slash", "é", "^x", "-", "]", "line\nend"])
small = st.integers(0, 4)
bounds = st.integers(-130, 130) | st.decimals(-3, 3, places=2).map(float)


@st.composite
def numbers(draw: Any) -> dict[str, Any]:
    low, high = sorted([draw(bounds), draw(bounds)])
    kind = draw(st.sampled_from(["integer", "number"]))
    schema: dict[str, Any] = {"type": kind}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high + 1
    return schema


@st.composite
def strings(draw: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    kind = draw(st.sampled_from(["plain", "length", "pattern", "format"]))
    if kind == "length":
        schema["minLength"] = draw(small)
        if draw(st.booleans()):
            schema["maxLength"] = schema["minLength"] + draw(small)
    elif kind == "pattern":
        if draw(st.booleans()):
            schema["maxLength"] = draw(st.integers(0, 6))
        schema["pattern"] = draw(st.sampled_from(
            ["^[a-c]{2,4}$", "^[a-c]+z?$", "^x(ab)*$",
             r"^\d{3}-\w+$", "b+", "^(ab|cd?)*$", '^[^a-z"]$', r"^\"\\\n?$", "x$", "^é|ü$", "[[:-]"]
        ))  # fmt: skip
    elif kind == "format":
        schema["format"] = draw(st.sampled_from(["date", "time", "date-time", "uuid"]))
    return schema


leaves = (
    numbers()
    | strings()
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "string", "null"]}, True, {}])
    | st.lists(st.sampled_from([1, "one", None, True, [1, {"a": "b"}], 2.5, 'q"\n']), min_size=1, max_size=3).map(
        lambda options: {"enum": options}
    )
    | st.sampled_from([{"const": "fixed"}, {"const": {"a": [1]}}, {"$ref": "#/$defs/node"}])
)


@st.composite
def objects(draw: Any, inner: Any) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, inner, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    schema["required"] = [name for name in properties if draw(st.booleans())]
    more = draw(st.sampled_from([None, False, True, {"type": "integer"}]))
    if more is not None:
        schema["additionalProperties"] = more
    return schema


@st.composite
def arrays(draw: Any, inner: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(inner)}
    if draw(st.booleans()):
        schema["minItems"] = draw(small)
        schema["maxItems"] = schema["minItems"] + draw(small)
    elif draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, max_size=3))
    return schema


schemas = st.recursive(
    leaves,
    lambda inner: (
        objects(inner)
        | arrays(inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices})
        | st.lists(objects(leaves), min_size=1, max_size=2).map(lambda parts: {"allOf": parts})
    ),
    max_leaves=6,
)
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v"],
    "additionalProperties": False,
}


@given(schemas, st.integers(0, 2**32))
@settings(max_examples=70, deadline=None)
def test_what_a_grammar_lets_through_is_valid(schema: Any, seed: int) -> None:
    root = {"$defs": {"node": NODE}, **(schema if isinstance(schema, dict) else {"anyOf": [schema]})}
    try:
        grammar = compiled(root)
    except RequestError:
        return  # nothing fits: bounds without a number between, and the like
    draw = random.Random(seed)
    for _ in range(4):
        text = walked(grammar, draw)
        if text is not None:
            assert fits(root, json.loads(text), root), (text, root)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer"}, ["0", "-12", "123456789"], ["01", "1.0", '"1"', ""]),
        ({"type": "number"}, ["0", "-1.50", "1e5", "2.5E-3"], ["1.", ".5", "NaN", "+1"]),
        ({"type": "string"}, ['""', '"é😀\\n\\u00e9\\ud83d\\ude00"'], ['"\n"', '"\\x"', '"\\ud83d"', "'a'"]),
        ({"type": "string", "maxLength": 1}, ['"\\ud83d\\ude00"', '"😀"', '"\\n"'], ['"ab"', '"\\n\\n"']),
        ({"enum": ["a\"b", 3, None, {"k": [True]}]}, ['"a\\"b"', "3", "null", '{"k":[true]}'], ["4", '"a"']),
        ({"type": "string", "enum": ["a", 5]}, ['"a"'], ["5"]),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}}}, ['{"a":1,"b":2}', '{"b": 2}', "{}"], ['{"c":3}']),
        (
            {"type": "object", "required": ["z"], "properties": {"a": {"type": "null"}, "z": {"type": "boolean"}}},
            ['{"z":true}', '{"z":false,"a":null}', '{\n  "z": true,\n  "a": null\n}'],
            ["{}", '{"a":null}'],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"x":1,"y":2}'], ['{"x":"1"}']),
        (
            {"properties": {"a": True, "ab": True}, "additionalProperties": {"type": "integer"}},
            ['{"a":"x"}', '{"abc":1}', '{"":1}', '{"b":1}', '{"a":[],"ab":{},"a1":1}', '{"é\\n":1}'],
            ['{"abc":"x"}', '{"\\u0061":1}'],
        ),
        ({"properties": {"a": {"type": "null"}}, "required": ["a", "b"]}, ['{"a":null,"b":[1]}'], ['{"a":null}']),
        ({"type": "object", "required": ["k"]}, ['{"k":[1]}', '{"k":1,"other":2}'], ["{}"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, ["[]", "[1]", "[1, 2]"], ["[1,2,3]", "[,]"]),
        ({"type": "array", "minItems": 2}, ["[1,[]]", '["a",null,{}]'], ["[1]", "[]"]),
        ({"prefixItems": [{"type": "integer"}, {"type": "string"}]}, ['[1,"a"]'], ["[1]", '[1,"a",2]', "[]"]),
        ({"prefixItems": [{"type": "integer"}, True], "minItems": 1, "items": {"type": "null"}},
         ["[1]", '[1,"a"]', "[1,2,null,null]"], ["[]", "[1,2,3]"]),
        ({"items": [{"type": "integer"}, {"type": "string"}]}, ['[1,"a"]'], ['[1,"a",2]']),
        ({"type": "array", "items": False}, ["[]"], ["[1]"]),
        ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}, ["1", "[[1],2,[]]"], ['"x"']),
        ({"oneOf": [{"const": 1}, False, {"type": "null"}]}, ["1", "null"], ["2"]),
        ({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
          "anyOf": [{"properties": {"k": {"const": "x"}}, "required": ["k"]}, {"properties": {"n": {"minimum": 5}}}]},
         ['{"n":1,"k":"x"}', '{"n":7}'], ['{"n":1}', '{"k":"x"}']),
        ({"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}],
          "$defs": {"base": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}},
         ['{"a":1,"b":null}'], ['{"a":1}', '{"b":null}']),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": "number", "minimum": 3}], "maximum": 5},
         ["3", "5"], ["2", "6", "4.5"]),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, ["null"], ["1"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2023-12-31"'],
         ['"2023-02-29"', '"2023-13-01"', '"1900-02-29"']),
        ({"type": "string", "format": "email"}, ['"ada.l@example.org"'], ['"ada"', '"a@b"']),
        ({"type": "string", "format": "ipv4"}, ['"192.168.0.255"'], ['"256.1.1.1"', '"1.2.3"']),
        ({"type": "string", "pattern": "^a{2}[^a]$"}, ['"aab"', '"aa\\""', '"aa\\n"'], ['"aaa"', '"aa""']),
        ({"type": "string", "pattern": "b"}, ['"b"', '"abc"'], ['"ac"', '""']),
        ({"type": "string", "pattern": "^(?<y>\\d{4})-(?:0[1-9]|1[0-2])$"}, ['"2024-11"'], ['"2024-13"']),
        ({"type": "string", "pattern": "^[a-z]{2,4}$", "maxLength": 4}, ['"abc"'], ['"a"', '"abcde"']),
        ({"type": "string", "pattern": "^[a-z][a-z0-9-]*$", "minLength": 2, "maxLength": 4}, ['"ab"', '"a-1b"'],
         ['"a"', '"abcde"', '"1ab"']),
        ({"type": "string", "pattern": "^x(ab)+$", "maxLength": 6}, ['"xab"', '"xabab"'], ['"xababab"', '"x"']),
        ({"type": "string", "pattern": "^[\\w-.]+@x$"}, ['"a-b.c@x"'], ['"a b@x"']),
        ({"type": "string", "format": "duration"}, ['"P3DT2H5M"', '"PT30S"', '"P2W"', '"P1Y6M"'],
         ['"P"', '"PT"', '"P1S"']),
        ({"type": "string", "format": "ipv6"}, ['"2001:db8:0:0:0:0:0:1"'], ['"2001:db8"', '"g:0:0:0:0:0:0:0"']),
        ({"type": "string", "format": "uri-reference"}, ['"https://example.org/a"'], ['"a b"']),
        ({"type": "string", "format": "json-pointer"}, ['""', '"/a/0/~1"'], ['"a"', '"/~2"']),
        ({"type": "object", "minProperties": 1, "maxProperties": 2}, ['{"a":1}', '{"a":1,"b":2}'],
         ["{}", '{"a":1,"b":2,"c":3}']),
        ({"type": "object", "maxProperties": 0}, ["{}"], ['{"a":1}']),
        ({"properties": {"a": True}, "required": ["a"], "additionalProperties": True, "maxProperties": 2},
         ['{"a":1}', '{"a":1,"b":2}'], ['{"a":1,"b":2,"c":3}']),
        ({"properties": {"a": True, "b": True}, "minProperties": 1}, ['{"a":1}', '{"b":1}', '{"a":1,"b":2}'], ["{}"]),
        ({"prefixItems": {"type": "integer"}}, ["[]", "[1,2]"], ['["a"]']),
        ({"type": "integer", "minimum": 0, "maximum": 18446744073709551615}, ["0", "18446744073709551615"],
         ["18446744073709551616", "-1"]),
        ({"description": "whatever"}, ["{}", "1", "null"], ["x"]),
        ({}, ["{}", '{"any": [1, null]}'], ["1", "[]"]),
        (True, ["{}", "1", '["a"]'], ["x"]),
        ('{"type": "boolean"}', ["true"], ["1"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_schema_means_what_it_says(schema: Any, yes: list[str], no: list[str]) -> None:
    grammar = compiled(schema)
    assert [text for text in yes if not accepts(grammar, text)] == []
    assert [text for text in no if accepts(grammar, text)] == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "is not JSON"),
        ({"const": float("nan")}, "is not JSON"),
        ({"enum": [{1}]}, "is not JSON"),
        ({"type": "array", "minItems": float("inf")}, "is not JSON"),
        ('{"type": "array", "minItems": 1e999}', "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ([], "has to be an object"),
        ({"type": "text"}, "'text' is no type (at #)"),
        ({"properties": {"a": {"not": {}}}}, "not cannot be enforced by a grammar (at #/properties/a)"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"type": "integer", "multipleOf": 5}, "multipleOf"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, "maxProperties"),
        ({"type": "object", "additionalProperties": False, "minProperties": 1}, "number of properties"),
        ({"if": {}, "then": {}}, "if cannot be enforced"),
        ({"type": "string", "format": "colour"}, "the format 'colour' is not understood"),
        ({"type": "string", "pattern": "(?=a)"}, "(?= is not understood"),
        ({"type": "string", "pattern": "a\\b"}, "\\b is not understood"),
        ({"type": "string", "pattern": "[a"}, "not closed"),
        ({"type": "string", "pattern": "*"}, "nothing that *"),
        ({"type": "string", "pattern": "^a*b*$", "minLength": 3}, "pattern or format together with minLength"),
        ({"type": "string", "pattern": "^ab*$", "maxLength": 0}, "no string of its pattern"),
        ({"type": "string", "pattern": "^a{20000}$"}, "repeats 10000 times at most (at #)"),
        ({"type": "string", "pattern": "\\ud83d"}, "half of a surrogate pair"),
        ({"type": "string", "pattern": "\\ud83d\\u0041"}, "half of a surrogate pair"),
        ({"const": "\ud800"}, "is not JSON"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers back to itself without an object or array between"),
        ({"properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#/properties/a"}}},
         "refers back to itself without an object or array between (at #/properties/a)"),
        ({"$ref": "https://example.org/schema"}, "only places within the schema"),
        ({"$ref": "#/$defs/none"}, "nothing at that place"),
        ({"$ref": "#"}, "refers back to itself"),
        ({"allOf": [{"$ref": "#"}]}, "refers back to itself"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no number lies between its bounds"),
        ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5}, "no number lies between"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nothing is both"),
        ({"enum": []}, "enum has to be a list"),
        ({"const": 1, "type": "string"}, "none of its constants fits"),
        ({"properties": {"a": False}, "required": ["a"]}, "its required property 'a' is not possible"),
        ({"minItems": 3, "maxItems": 2}, "fewer items than at least"),
        ({"type": "array", "minItems": -1}, "minItems is -1"),
        ({"type": "array", "minItems": 10**9}, "a grammar counts to 10000"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "two different values of pattern"),
        (False, "nothing matches it"),
        ({"properties": 5}, "properties has to be an object"),
    ],
)  # fmt: skip
def test_what_a_grammar_cannot_hold_is_named(schema: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled(schema)
    assert says in str(caught.value)


def numbers_of(gbnf: str | None) -> Any:
    grammar = CompiledGrammar(f"root ::= {gbnf}", SPELLING, SPELLING.n_vocab)
    return lambda text: accepts(grammar, text)


@given(st.integers(-1100, 1100) | st.none(), st.integers(-1100, 1100) | st.none())
@settings(max_examples=60, deadline=None)
def test_integers_between_bounds_are_exactly_those(low: int | None, high: int | None) -> None:
    gbnf = integer_gbnf(low, high)
    if gbnf is None:
        assert low is not None
        assert high is not None
        assert low > high
        return
    holds = numbers_of(gbnf)
    near = {n + d for n in (low or 0, high or 0, 0, 10, 99, 100, -99, -100, 1000) for d in (-2, -1, 0, 1, 2, 11)}
    for n in near:
        inside = (low is None or n >= low) and (high is None or n <= high)
        assert holds(str(n)) == inside, n


@given(
    st.decimals(-12, 12, places=2) | st.none(), st.booleans(), st.decimals(-12, 12, places=2) | st.none(), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_numbers_between_bounds_are_exactly_those(low: Any, low_open: bool, high: Any, high_open: bool) -> None:
    gbnf = number_gbnf(low, low_open, high, high_open)
    draw = random.Random(1)
    steps = [Decimal(k) / 1000 for k in (-1000, -10, -1, 0, 1, 10, 500)]
    values = {near + step for near in (low or Decimal(0), high or Decimal(0), Decimal(0)) for step in steps}
    values |= {Decimal(draw.randint(-15000, 15000)) / 1000 for _ in range(20)}
    inside = {
        v
        for v in values
        if (low is None or v > low or (v == low and not low_open))
        and (high is None or v < high or (v == high and not high_open))
    }
    if gbnf is None:
        assert not inside
        return
    holds = numbers_of(gbnf)
    for value in values:
        for text in {str(value), f"{value:.3f}", f"{value.normalize():f}"}:
            if text.startswith("-") and not value:
                continue
            assert holds(text) == (value in inside), text
