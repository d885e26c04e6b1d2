"""Whatever is given as a grammar or a schema either works or is refused with a sentence; nothing else is raised."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar import CompiledGrammar, schema_gbnf
from tests.grammar.spelling import Spelled
from tests.grammar.test_masks import allowed_ids

SPELLING = Spelled([bytes([byte]) for byte in range(256)])
KEYWORDS = ["type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
            "minLength", "maxLength", "pattern", "format", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs",
            "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "not", "title", "minProperties",
            "uniqueItems", "additionalItems", "unevaluatedProperties"]  # fmt: skip
WORDS = [
    "object",
    "array",
    "string",
    "integer",
    "number",
    "null",
    "#",
    "#/$defs/a",
    "#/items",
    "^a+$",
    "[",
    "date",
    "a",
]
PIECES = ["root", "a", " ::= ", '"x"', "[a-z]", "(", ")", "*", "+", "?", "{1,2}", "|", "\n", " ", ".", "<[3]>",
          "!<think>", "#c", "\\x41", '"', "[^", "]", "{", "root ::= a\na ::= "]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYWORDS, "a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def usable(gbnf: str) -> None:
    constraint = CompiledGrammar(gbnf, SPELLING, SPELLING.n_vocab).start()
    for _ in range(4):
        allowed = constraint.allowed()
        assert not allowed.empty
        plain = [t for t in sorted(allowed_ids(constraint, SPELLING.n_vocab)) if t != SPELLING.end]
        if not plain:
            return
        constraint.accept(plain[len(plain) // 2])
        constraint.forced_tokens()


@given(values)
@settings(max_examples=150, deadline=None)
def test_any_schema(schema: Any) -> None:
    with suppress(RequestError):
        usable(schema_gbnf(schema))


@given(st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=150, deadline=None)
def test_any_grammar(parts: list[str]) -> None:
    with suppress(RequestError):
        usable("root ::= " + "".join(parts))
