"""Reads GBNF, llama.cpp's notation of grammars (its grammars/README.md)."""

from __future__ import annotations

from bisect import bisect_right
from typing import NoReturn

from engine.errors import RequestError
from engine.grammar.syntax import (
    LAST_CHARACTER,
    SURROGATES,
    Alt,
    Chars,
    Grammar,
    Node,
    Place,
    Ref,
    Repeat,
    Rule,
    Seq,
    TokenIs,
    complement,
    merged,
    without_surrogates,
)

MOST_REPETITIONS = 10_000
DEEPEST_GROUP = 100
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_DIGITS = frozenset("0123456789")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_ANY = Chars(without_surrogates(((0, LAST_CHARACTER),)))


def parse_gbnf(text: str) -> Grammar:
    """The rules of a grammar. Raises RequestError with line and column for what it cannot read, for a rule that is
    missing or defined twice, and where there is no rule `root`."""
    return _Parser(text).grammar()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines = [0, *(end + 1 for end, char in enumerate(text) if char == "\n")]
        self._rules: dict[str, Rule] = {}
        self._refs: list[Ref] = []
        self._depth = 0

    def grammar(self) -> Grammar:
        self._space(lines=True)
        while self._at < len(self._text):
            self._rule()
        if "root" not in self._rules:
            raise RequestError(
                "The grammar has no rule named root, which says what the whole answer is.", "Add `root ::= ...`."
            )
        for ref in self._refs:
            if ref.name not in self._rules:
                self._fail(
                    f"there is no rule {ref.name:.80}", ref.place, f"Known are {', '.join(sorted(self._rules)):.500}."
                )
        return self._rules

    # Rules and what they are made of

    def _rule(self) -> None:
        place = self._place()
        name = self._name()
        self._space(lines=False)
        if not self._text.startswith("::=", self._at):
            self._fail(f"::= has to follow the name of the rule {name:.80}")
        self._at += 3
        self._space(lines=True)
        body = self._alternatives(nested=False)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            self._fail(f"{self._peek()!r} cannot stand here")
        if name in self._rules:
            self._fail(f"the rule {name:.80} was defined before, at {self._rules[name].place}", place)
        self._rules[name] = Rule(name, body, place)
        self._space(lines=True)

    def _alternatives(self, nested: bool) -> Node:
        items = [self._sequence(nested)]
        while self._peek() == "|":
            self._at += 1
            self._space(lines=True)
            items.append(self._sequence(nested))
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def _sequence(self, nested: bool) -> Node:
        items: list[Node] = []
        while (item := self._item(items, nested)) is not None:
            items.append(item)
            self._space(lines=nested)
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def _item(self, before: list[Node], nested: bool) -> Node | None:
        """What stands here, or None where the sequence ends. A repetition takes the last of `before` with it."""
        char = self._peek()
        if char == '"':
            return self._literal()
        if char == "[":
            return self._class()
        if char == "(":
            return self._group()
        if char == ".":
            self._at += 1
            return _ANY
        if char in ("<", "!"):
            return self._token()
        if char and char in "*+?{":
            place = self._place()
            least, most = self._count(nested)
            if not before:
                self._fail(f"there is nothing that {char} could repeat", place)
            return Repeat(before.pop(), least, most)
        if char and char in _NAME:
            ref = Ref(place=self._place(), name=self._name())
            self._refs.append(ref)
            return ref
        return None

    def _group(self) -> Node:
        place = self._place()
        self._depth += 1
        if self._depth > DEEPEST_GROUP:
            self._fail(f"more than {DEEPEST_GROUP} groups stand inside each other", place)
        self._at += 1
        self._space(lines=True)
        inside = self._alternatives(nested=True)
        if self._peek() != ")":
            self._fail("the group is not closed by )" if not self._peek() else f"{self._peek()!r} cannot stand here",
                       place if not self._peek() else None)  # fmt: skip
        self._at += 1
        self._depth -= 1
        return Seq((inside,))  # a group stays one item for what repeats it

    def _count(self, nested: bool) -> tuple[int, int | None]:
        char, place = self._peek(), self._place()
        self._at += 1
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        self._space(lines=nested)
        least = self._number()
        most: int | None = least
        self._space(lines=nested)
        if self._peek() == ",":
            self._at += 1
            self._space(lines=nested)
            most = self._number() if self._peek() in _DIGITS else None
            self._space(lines=nested)
        if self._peek() != "}":
            self._fail("the repetition is not closed by }")
        self._at += 1
        if most is not None and most < least:
            self._fail(f"{{{least},{most}}} asks for at most fewer than at least", place)
        if max(least, most or 0) > MOST_REPETITIONS:
            self._fail(f"{max(least, most or 0)} repetitions are more than the {MOST_REPETITIONS} possible", place)
        return least, most

    def _number(self) -> int:
        start = self._at
        while self._peek() in _DIGITS:
            self._at += 1
        if start == self._at:
            self._fail("a number has to stand here")
        return int(self._text[start : self._at]) if self._at - start < 10 else 10**9

    def _name(self) -> str:
        start = self._at
        while self._peek() in _NAME:
            self._at += 1
        if start == self._at:
            self._fail("the name of a rule has to stand here")
        return self._text[start : self._at]

    # Characters and tokens

    def _literal(self) -> Node:
        place = self._place()
        self._at += 1
        items = []
        while self._peek() != '"':
            if not self._peek():
                self._fail('the text is not closed by "', place)
            start, code = self._place(), self._character()
            if SURROGATES[0] <= code <= SURROGATES[1]:
                self._fail("half of a surrogate pair is no character", start)
            items.append(Chars(((code, code),)))
        self._at += 1
        return Seq(tuple(items))

    def _class(self) -> Node:
        place = self._place()
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            if not self._peek():
                self._fail("the class of characters is not closed by ]", place)
            start, low = self._place(), self._character()
            high = low
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._character()
            if high < low:
                self._fail("the range of characters runs backwards", start)
            ranges.append((low, high))
        self._at += 1
        if not ranges:
            self._fail("the class of characters is empty", place)
        found = merged(ranges)
        found = without_surrogates(complement(found) if negated else found)
        if not found:
            self._fail("no character fits this class", place)
        return Chars(found)

    def _character(self) -> int:
        place, char = self._place(), self._peek()
        self._at += 1
        if char != "\\":
            if not char:
                self._fail("the grammar ends within a character", place)
            return ord(char)
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        if kind not in _HEX_ESCAPES:
            self._fail(
                f"\\{kind} is no escape", place, 'There are \\n \\r \\t \\\\ \\" \\[ \\] \\- \\xHH \\uHHHH \\UHHHHHHHH.'
            )
        digits = self._text[self._at : self._at + _HEX_ESCAPES[kind]]
        if len(digits) < _HEX_ESCAPES[kind] or not all(c in "0123456789abcdefABCDEF" for c in digits):
            self._fail(f"\\{kind} needs {_HEX_ESCAPES[kind]} hexadecimal digits", place)
        self._at += len(digits)
        code = int(digits, 16)
        if code > LAST_CHARACTER:
            self._fail(f"there is no character {code:#x}", place)
        return code

    def _token(self) -> Node:
        place = self._place()
        negated = self._peek() == "!"
        self._at += negated
        if self._peek() != "<":
            self._fail("a token such as <[15]> or <think> has to follow !")
        end = self._text.find(">", self._at)
        if end < 0 or "\n" in self._text[self._at : end]:
            self._fail("the token is not closed by >", place)
        text = self._text[self._at : end + 1]
        self._at = end + 1
        if not text.startswith("<["):
            return TokenIs(text, negated, place)
        digits = text[2:-2]
        if not text.endswith("]>") or not digits.isdecimal() or not digits.isascii() or len(digits) > 9:
            self._fail(f"{text:.80} names no token: an id such as <[15]> has to stand here", place)
        return TokenIs(int(digits), negated, place)

    # The text

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1] or _END

    def _space(self, lines: bool) -> None:
        while (char := self._peek()) != _END and (char in " \t#" or (lines and char in "\r\n")):
            if char == "#":
                while self._peek() != _END and self._peek() not in "\r\n":
                    self._at += 1
            else:
                self._at += 1

    def _place(self) -> Place:
        line = bisect_right(self._lines, self._at)
        return Place(line, self._at - self._lines[line - 1] + 1)

    def _fail(self, what: str, place: Place | None = None, hint: str = "") -> NoReturn:
        raise RequestError(f"The grammar cannot be used: {what} ({place or self._place()}).", hint)


_END = ""
