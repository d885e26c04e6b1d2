"""Regular expressions of JSON Schema (ECMA-262, without what looks around or back) as grammars of JSON strings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from engine.grammar.gbnf import DEEPEST_GROUP, MOST_REPETITIONS
from engine.grammar.syntax import (
    LAST_CHARACTER,
    Alt,
    Chars,
    Node,
    Ranges,
    Repeat,
    Seq,
    complement,
    merged,
    without_surrogates,
)

_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = merged([(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
                 (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)])  # fmt: skip
_SETS: dict[str, Ranges] = {
    "d": _DIGIT, "D": complement(_DIGIT), "w": _WORD, "W": complement(_WORD), "s": _SPACE, "S": complement(_SPACE),
}  # fmt: skip
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_NOT_LINE_ENDS = complement(merged([(10, 10), (13, 13), (0x2028, 0x2029)]))
_ANYTHING = Repeat(Chars(without_surrogates(((0, LAST_CHARACTER),))), 0, None)

Fail = Callable[[str], NoReturn]


def parse_pattern(pattern: str, fail: Fail) -> Node:
    """What a whole string has to be so that the pattern is found in it. fail: raises the error for what is wrong."""
    return _Pattern(pattern, fail).whole()


class _Pattern:
    def __init__(self, text: str, fail: Fail) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._fail_with = fail

    def whole(self) -> Node:
        out = []
        while True:
            begins = self._take("^")
            items = self._sequence()
            ends = self._take("$")
            if not begins:
                items = [_ANYTHING, *items]
            if not ends:
                items = [*items, _ANYTHING]
            out.append(Seq(tuple(items)))
            if not self._take("|"):
                break
        if self._at < len(self._text):
            self._fail(f"{self._peek()!r} cannot stand here")
        return Alt(tuple(out))

    def _alternatives(self) -> Node:
        out = [Seq(tuple(self._sequence()))]
        while self._take("|"):
            out.append(Seq(tuple(self._sequence())))
        return Alt(tuple(out))

    def _sequence(self) -> list[Node]:
        items: list[Node] = []
        while (char := self._peek()) and char not in "|)$":
            if char == "^":
                self._fail("^ is understood at the beginning only")
            items.append(self._repeated(self._atom()))
        return items

    def _repeated(self, item: Node) -> Node:
        while char := self._peek():
            if char == "{" and self._count_ends():
                least, most = self._count()
            elif char in "*+?":
                self._at += 1
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
            else:
                break
            self._take("?")  # reluctant or not, the same strings match
            item = Repeat(item, least, most)
        return item

    def _count_ends(self) -> int:
        end = self._text.find("}", self._at)
        inside = self._text[self._at + 1 : end] if end > 0 else ""
        numbers = inside.split(",")
        return (
            end
            if len(numbers) <= 2 and numbers[0].isdecimal() and (numbers[-1].isdecimal() or numbers[-1:] == [""])
            else 0
        )

    def _count(self) -> tuple[int, int | None]:
        end = self._count_ends()
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        self._at = end + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            self._fail("a repetition asks for at most fewer than at least")
        if max(least, most or 0) > MOST_REPETITIONS:
            self._fail(f"a grammar repeats {MOST_REPETITIONS} times at most")
        return least, most

    def _atom(self) -> Node:
        char = self._peek()
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return Chars(self._class())
        if char == ".":
            return Chars(without_surrogates(_NOT_LINE_ENDS))
        if char == "\\":
            found = without_surrogates(self._escape(in_class=False))
            if not found:
                self._fail("half of a surrogate pair is no character")
            return Chars(found)
        if char in "*+?":
            self._fail(f"there is nothing that {char} could repeat")
        return Chars(((ord(char), ord(char)),))

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST_GROUP:
            self._fail(f"more than {DEEPEST_GROUP} groups stand inside each other")
        if self._take("?"):
            if self._text.startswith("<", self._at) and self._text[self._at + 1 : self._at + 2] not in ("=", "!"):
                end = self._text.find(">", self._at)
                self._at = end + 1 if end > 0 else len(self._text)
            elif not self._take(":"):
                self._fail(f"(?{self._peek()} is not understood")
        inside = self._alternatives()
        if self._peek() == "$":
            self._fail("$ is understood at the end only")
        if not self._take(")"):
            self._fail("a group is not closed")
        self._depth -= 1
        return inside

    def _class(self) -> Ranges:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._class_item()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._class_item()
                if _is_one(low) and _is_one(high):
                    if high[0][0] < low[0][0]:
                        self._fail("a range in a class runs backwards")
                    low = ((low[0][0], high[0][0]),)
                else:  # beside a set such as \\w the hyphen stands for itself
                    low = (*low, (45, 45), *high)
            ranges += low
        found = merged(ranges)
        found = without_surrogates(complement(found) if negated else found)
        if not found:
            self._fail("a class matches no character")
        return found

    def _class_item(self) -> Ranges:
        char = self._peek()
        if not char:
            self._fail("a class of characters is not closed")
        self._at += 1
        return self._escape(in_class=True) if char == "\\" else ((ord(char), ord(char)),)

    def _escape(self, in_class: bool) -> Ranges:
        kind = self._peek()
        self._at += 1
        if kind in _SETS:
            return _SETS[kind]
        if kind in _CONTROLS and not (kind == "0" and self._peek().isdecimal()):
            return ((_CONTROLS[kind],) * 2,)
        if kind in ("x", "u"):
            code = self._hex(kind)
            return ((code, code),)
        if kind == "b" and in_class:
            return ((8, 8),)
        if not kind or kind.isalnum():
            self._fail(f"\\{kind} is not understood")
        return ((ord(kind), ord(kind)),)

    def _hex(self, kind: str) -> int:
        if kind == "u" and self._take("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : end]
            self._at = end + 1
        else:
            length = 2 if kind == "x" else 4
            digits = self._text[self._at : self._at + length]
            self._at += length
            if len(digits) < length:
                digits = ""
        try:
            code = int(digits, 16)
        except ValueError:
            code = -1
        if not 0 <= code <= LAST_CHARACTER:
            self._fail(f"\\{kind} needs hexadecimal digits")
        if 0xD800 <= code <= 0xDBFF and self._text.startswith("\\u", self._at):
            before, self._at = self._at, self._at + 2
            low = self._hex("u")
            if 0xDC00 <= low <= 0xDFFF:
                return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            self._at = before
        return code

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        found = self._text.startswith(char, self._at)
        self._at += found
        return found

    def _fail(self, what: str) -> NoReturn:
        self._fail_with(f"its pattern {self._text!r:.80} cannot be used: {what}")


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def lengths(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters of what matches; None where there is no limit."""
    match node:
        case Chars():
            return 1, 1
        case Seq():
            parts = [lengths(item) for item in node.items]
            most = [high for _, high in parts]
            return sum(low for low, _ in parts), None if None in most else sum(high or 0 for high in most)
        case Alt():
            parts = [lengths(item) for item in node.items]
            highs = [high for _, high in parts]
            return min(low for low, _ in parts), None if None in highs else max(high or 0 for high in highs)
        case Repeat():
            low, high = lengths(node.item)
            most_here = None if high is None or node.most is None else high * node.most
            return low * node.least, 0 if high == 0 else most_here
    raise AssertionError(node)


def limited(node: Node, least: int, most: int | None) -> Node | None:
    """What of it has that many characters, or None where that cannot be said: it can where one repetition of something
    of a fixed length is all that makes it longer or shorter. A repetition that cannot come out right asks for at most
    fewer than at least."""
    shortest, longest = lengths(node)
    if shortest >= least and (most is None or (longest is not None and longest <= most)):
        return node
    match node:
        case Repeat():
            low, high = lengths(node.item)
            if low != high or not low:
                return None
            fewest = max(node.least, -(-least // low))
            mosts = [bound for bound in (node.most, None if most is None else most // low) if bound is not None]
            return Repeat(node.item, fewest, min(mosts) if mosts else None)
        case Seq() | Alt() if len(node.items) == 1:
            return limited(node.items[0], least, most)
        case Seq():
            sizes = [lengths(item) for item in node.items]
            moving = [place for place, (low, high) in enumerate(sizes) if low != high]
            if len(moving) != 1:
                return None
            rest = sum(low for place, (low, _) in enumerate(sizes) if place != moving[0])
            inner = limited(node.items[moving[0]], max(least - rest, 0), None if most is None else most - rest)
            if inner is None:
                return None
            return Seq((*node.items[: moving[0]], inner, *node.items[moving[0] + 1 :]))
    return None


def impossible(node: Node) -> bool:
    """Whether a repetition in it asks for at most fewer than at least."""
    match node:
        case Repeat():
            return (node.most is not None and node.most < node.least) or impossible(node.item)
        case Seq():
            return any(map(impossible, node.items))
    return False


# A pattern as GBNF, its characters spelled as JSON spells them within a string

_SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '\\"', 92: "\\\\"}


def string_gbnf(node: Node) -> str:
    """The GBNF of a JSON string's inside."""
    match node:
        case Chars():
            return _characters(node.ranges)
        case Seq():
            return "(" + " ".join(map(string_gbnf, node.items)) + ")" if node.items else '""'
        case Alt():
            return "(" + " | ".join(map(string_gbnf, node.items)) + ")"
        case Repeat():
            most = "" if node.most is None else node.most
            return f"{string_gbnf(node.item)}{{{node.least},{most}}}"
    raise AssertionError(node)


def _characters(ranges: Ranges) -> str:
    escaped = [code for code in _SHORT_ESCAPES if _holds(ranges, code)]
    others = [code for code in range(32) if _holds(ranges, code) and code not in _SHORT_ESCAPES]
    plain = _without(ranges, [*range(32), 34, 92])
    parts = []
    if plain:
        parts.append("[" + "".join(_range(low, high) for low, high in plain) + "]")
    if escaped:
        parts.append('"\\\\" [' + "".join(_SHORT_ESCAPES[code] for code in escaped) + "]")
    if others and not parts:  # in a wide class nobody misses them
        parts += [f'"\\\\u{code:04x}"' for code in others]
    return parts[0] if len(parts) == 1 and plain else "(" + " | ".join(parts) + ")"


def _holds(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _without(ranges: Ranges, codes: list[int]) -> Ranges:
    taken = merged([(code, code) for code in codes])
    return complement(merged([*complement(ranges), *taken]))


def _range(low: int, high: int) -> str:
    return _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"


def _escaped(code: int) -> str:
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    if code > 126 or code < 32:
        return f"\\u{code:04x}"
    return "\\" + chr(code) if chr(code) in '\\"[]-' else f"\\x{code:02x}" if chr(code) == "^" else chr(code)
