"""The tokens that a grammar allows are those after which some text still matches it: checked token by token."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar import CompiledGrammar, Constraint, masks
from tests.grammar.languages import NOTHING, Expression, after_all, languages, matches_empty
from tests.grammar.spelling import Spelled

BYTES = [bytes([byte]) for byte in range(256)]
PIECES = ["a", "b", "0", "ab", "ba", "aa", 'a"', "\\", "\\\\", "é", "éa", "€", "😀", '0\\"', "aab0", '"a']
PARTS = [b"\xc3", b"\xa9", b"a\xc3", b"\xa9b", b"\xe2\x82", b"\xacab", b"\xf0\x9f", b"\x98\x80\xf0", b"\xff", b"a\xff"]


def vocabulary(seed: int, bytes_too: bool = True) -> Spelled:
    """Some texts, some parts of characters, twice the same text, and all single bytes."""
    chosen = random.Random(seed).sample([*(piece.encode() for piece in PIECES), *PARTS], 14)
    return Spelled([*chosen, chosen[0], *(BYTES if bytes_too else [b"a", b"b"])])


def allowed_ids(constraint: Constraint, n: int) -> set[int]:
    found = constraint.allowed()
    if found.ids is not None:
        return set(found.ids.tolist())
    assert found.banned is not None
    return set(range(n)) - set(found.banned.tolist())


def expected_ids(expression: Expression, spelling: Spelled) -> set[int]:
    tokens = {t for t, piece in enumerate(spelling.texts) if piece and after_all(expression, piece) != NOTHING}
    return tokens | ({spelling.end} if matches_empty(expression) else set())


@pytest.fixture(params=[masks.WORTH_PRUNING, 0], autouse=True)
def pruning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large and small vocabularies go different ways; here the small ones go both. What masks keep is forgotten where
    it grows large, here at once."""
    monkeypatch.setattr(masks, "WORTH_PRUNING", request.param)
    if not request.param:
        monkeypatch.setattr(masks, "FEW", 0)
        monkeypatch.setattr(masks, "MOST_BYTES", 0)


@given(languages(), st.integers(0, 5), st.integers(0, 2**32), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masks_equal_a_check_of_each_token(language: tuple[str, Expression], seed: int, walk: int, rules: bool) -> None:
    gbnf, expression = language
    spelling = vocabulary(seed)
    grammar = f"root ::= start\nstart ::= {gbnf}" if rules else f"root ::= {gbnf}"
    constraint = CompiledGrammar(grammar, spelling, spelling.n_vocab).start()
    draw = random.Random(walk)
    for _ in range(12):
        expected = expected_ids(expression, spelling)
        assert allowed_ids(constraint, spelling.n_vocab) == expected
        assert {t for t in range(spelling.n_vocab) if constraint.permits(t)} == expected
        assert constraint.may_end == matches_empty(expression)
        forced = constraint.forced()
        assert after_all(expression, forced) != NOTHING
        for place in range(len(forced)):
            here = after_all(expression, forced[:place])
            assert not matches_empty(here)
            assert [b for b in range(256) if after_all(here, bytes([b])) != NOTHING] == [forced[place]]
        tokens = sorted(expected - {spelling.end})
        if not tokens:
            break
        token = draw.choice(tokens)
        constraint.accept(token)
        expression = after_all(expression, spelling.texts[token])


def walked(grammar: CompiledGrammar, spelling: Spelled, draw: random.Random, longest: int = 400) -> bytes | None:
    """A random text of the grammar, or None where it grew too long."""
    constraint, out = grammar.start(), b""
    for _ in range(longest):
        tokens = sorted(allowed_ids(constraint, spelling.n_vocab))
        assert tokens, out
        if spelling.end in tokens and (len(tokens) == 1 or draw.random() < 0.4):
            return out
        token = draw.choice([t for t in tokens if t != spelling.end])
        constraint.accept(token)
        out += spelling.texts[token]
    return None


def brackets(text: str) -> bool:
    while text != (text := re.sub(r"\(x*\)|\[x*\]", "x", text)):
        pass
    return re.fullmatch("x+", text) is not None


def one_or_two(text: str) -> bool:
    nested = re.fullmatch("(a+)(b*)c", text)
    return re.fullmatch("(ab)*ac", text) is not None or (nested is not None and len(nested[1]) == len(nested[2]) + 1)


@pytest.mark.parametrize(
    ("grammar", "check"),
    [
        ('root ::= pair+\npair ::= "(" pair* ")" | "[" pair* "]"', brackets),
        ('root ::= "a" root "b" | "ab"', lambda t: re.fullmatch("a+b+", t) and t.count("a") == t.count("b")),
        ('root ::= [0-9]{1,3} ("." [0-9]{1,3}){3}', lambda t: re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", t)),
        ('root ::= x? x? x? x? "!"\nx ::= "a" | "ab" | "b"', lambda t: re.fullmatch("(a|ab|b){0,4}!", t)),
        ('root ::= opt opt word\nopt ::= "a"? "b"?\nword ::= [^ab]+', lambda t: re.fullmatch("a?b?a?b?[^ab]+", t)),
        ('root ::= even\neven ::= "" | "a" odd\nodd ::= "a" even', lambda t: re.fullmatch("(aa)*", t)),
        ('root ::= (one | two) "c"\none ::= "ab" one | "a"\ntwo ::= "a" two "b" | "a"', one_or_two),
    ],
)  # fmt: skip
def test_random_texts_of_recursive_and_ambiguous_grammars_match(grammar: str, check: Any) -> None:
    pieces = ["((", "))", "([", "])", "aa", "ab", "bb", "abb", "(((", "1.", ".2", "12", "a!", "b!", "é", "bc"]
    spelling = Spelled([*(piece.encode() for piece in pieces), *BYTES])
    compiled = CompiledGrammar(grammar, spelling, spelling.n_vocab)
    draw, texts = random.Random(4), set()
    for _ in range(60):
        found = walked(compiled, spelling, draw)
        if found is not None:
            texts.add(found.decode())
    assert len(texts) > 3 or grammar.startswith("root ::= even")
    for text in texts:
        assert check(text), text


def test_answers_share_masks_whatever_rules_surround_them() -> None:
    """Ten strings in as many places: the vocabulary is walked for the first, and no more for the others."""
    keys = "".join(f'"k{i}:" string ' for i in range(10))
    spelling = Spelled([*(b"w%d" % i for i in range(500)), *BYTES])
    grammar = CompiledGrammar(f'root ::= {keys}\nstring ::= "<" [^>]* ">"', spelling, spelling.n_vocab)
    constraint = grammar.start()
    walks: list[int] = []
    walk = grammar.masks._walk

    def counted(nodes: Any, frame: int) -> Any:
        walks.append(frame)
        return walk(nodes, frame)

    grammar.masks._walk = counted  # type: ignore[method-assign]
    counts = []
    for i in range(10):
        for byte in b"k%d:<" % i:
            constraint.accept(spelling.texts.index(bytes([byte])))
        constraint.allowed()
        constraint.accept(spelling.texts.index(b"w7"))
        constraint.allowed()
        constraint.accept(spelling.texts.index(b">"))
        counts.append(len(walks))
    assert counts[0] >= 1
    assert max(np.diff(counts)) <= 1  # what follows the string is another rule each time


def test_hidden_tokens_come_only_where_they_are_named() -> None:
    spelling = Spelled(BYTES)
    grammar = 'root ::= <think> "a" !<[97]>* <[260]>? "."'
    with pytest.raises(RequestError, match="260"):
        CompiledGrammar(grammar, spelling, spelling.n_vocab)
    constraint = CompiledGrammar('root ::= <think> "a" !<[97]>* "."', spelling, spelling.n_vocab).start()
    assert allowed_ids(constraint, spelling.n_vocab) == {spelling.think}
    constraint.accept(spelling.think)
    assert allowed_ids(constraint, spelling.n_vocab) == {ord("a")}
    constraint.accept(ord("a"))
    everything = set(range(spelling.n_vocab))
    assert allowed_ids(constraint, spelling.n_vocab) == everything - {ord("a"), spelling.end}
    constraint.accept(spelling.think)
    constraint.accept(ord("."))
    assert constraint.may_end
    assert not constraint.complete
    constraint.accept(spelling.end)


def test_what_masks_keep_is_forgotten_within_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MOST_BYTES", 4000)
    spelling = vocabulary(1)
    constraint = CompiledGrammar("root ::= .{0,500}", spelling, spelling.n_vocab).start()
    for _ in range(400):
        token = spelling.texts.index(b"a")
        assert token in allowed_ids(constraint, spelling.n_vocab)
        constraint.accept(token)
        assert constraint._masks.held_bytes < 10_000
