"""Finding the special tokens in a text: longest first, in time linear in the text."""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.tokenizer.vocabulary import Attr, Vocabulary

_ASCII_SPACE = " \t\n\v\f\r"
_Trie: TypeAlias = "dict[str, _Trie]"


@dataclass(frozen=True)
class _Special:
    token: int
    text: str
    attr: int
    length: int  # in bytes, which decides who goes first


class SpecialTokens:
    """A set of special tokens to cut texts at."""

    def __init__(self, vocabulary: Vocabulary, tokens: Iterable[int]) -> None:
        specials = [
            _Special(token, text, int(vocabulary.attrs[token]), len(text.encode("utf-8", "surrogateescape")))
            for token in tokens
            if vocabulary.ids[text := vocabulary.tokens[token]] == token
        ]
        self._ordered = sorted(specials, key=lambda special: -special.length)
        self._by_text = {special.text: special for special in specials}
        self._pattern = re.compile(_alternation(self._by_text)) if specials else None
        self._contested = _contested(self._ordered)
        self._strips = any(special.attr & (Attr.LSTRIP | Attr.RSTRIP) for special in specials)
        # White space that a token strips could be a token itself: then only the slow way is right.
        self._strips_tokens = self._strips and any(
            special.text[0] in _ASCII_SPACE or special.text[-1] in _ASCII_SPACE for special in specials
        )

    @property
    def texts(self) -> Iterable[str]:
        return self._by_text

    def split(self, text: str) -> list[str | int]:
        """Cuts `text` into plain pieces (never empty) and token ids, in order."""
        if not text:
            return []
        if self._pattern is None:
            return [text]
        found: list[tuple[int, int, _Special]] = []
        for match in self._pattern.finditer(text):
            special = self._by_text[match[0]]
            if self._strips_tokens or (special.text in self._contested and self._loses(text, match.span(), special)):
                return self._split_by_length(text)
            found.append((match.start(), match.end(), special))
        return self._cut(text, found)

    def _loses(self, text: str, span: tuple[int, int], special: _Special) -> bool:
        """Whether a longer token begins inside of this match; longer ones go first, wherever they begin."""
        assert self._pattern is not None
        at = span[0] + 1
        while (match := self._pattern.search(text, at)) and match.start() < span[1]:
            if self._by_text[match[0]].length > special.length:
                return True
            at = match.start() + 1
        return False

    def _split_by_length(self, text: str) -> list[str | int]:
        """Cuts at one token after the other, the longest first: what `split` means, in the plainest way."""
        taken: list[tuple[int, int]] = []  # disjoint spans, ascending
        found: list[tuple[int, int, _Special]] = []
        for special in self._ordered:
            at = text.find(special.text)
            while at >= 0:
                end = at + len(special.text)
                i = bisect_right(taken, (at, len(text)))
                begins = taken[i][0] if i < len(taken) else len(text)
                ended = taken[i - 1][1] if i else 0
                if at < ended or end > begins:
                    at = text.find(special.text, max(at + 1, ended if at < ended else at + 1))
                    continue
                start, stop = at, end
                if special.attr & Attr.LSTRIP:
                    while start > ended and text[start - 1] in _ASCII_SPACE:
                        start -= 1
                if special.attr & Attr.RSTRIP:
                    while stop < begins and text[stop] in _ASCII_SPACE:
                        stop += 1
                insort(taken, (start, stop))
                found.append((start, stop, special))
                at = text.find(special.text, stop)
        found.sort(key=lambda item: item[:2])
        return self._cut(text, found, strip=False)

    def _cut(self, text: str, found: Sequence[tuple[int, int, _Special]], strip: bool = True) -> list[str | int]:
        pieces: list[str | int] = []
        at = 0
        for start, end, special in found:
            plain = text[at:start]
            if strip and special.attr & Attr.LSTRIP:
                plain = plain.rstrip(_ASCII_SPACE)
            if plain:
                pieces.append(plain)
            pieces.append(special.token)
            at = end
            if strip and special.attr & Attr.RSTRIP:
                while at < len(text) and text[at] in _ASCII_SPACE:
                    at += 1
        if at < len(text):
            pieces.append(text[at:])
        return pieces


def _alternation(texts: Iterable[str]) -> str:
    """A regular expression that matches the longest of `texts` at a place, built as a trie so that it stays fast."""
    trie: _Trie = {}
    for text in texts:
        node = trie
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    try:
        return _trie_pattern(trie)
    except RecursionError:  # hundreds of tokens that begin with each other
        return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


def _trie_pattern(trie: _Trie) -> str:
    prefix = ""
    while len(trie) == 1 and "" not in trie:
        ((char, trie),) = trie.items()
        prefix += re.escape(char)
    branches = [re.escape(char) + _trie_pattern(node) for char, node in trie.items() if char]
    if not branches:
        return prefix
    group = f"(?:{'|'.join(branches)})"
    return prefix + (group + "?" if "" in trie else group)


def _contested(ordered: Sequence[_Special]) -> set[str]:
    """The texts that a longer token may overlap from the right: one of their endings begins a longer token."""
    longest: dict[str, int] = {}
    for special in reversed(ordered):
        for end in range(1, len(special.text)):
            longest[special.text[:end]] = special.length
    return {
        special.text
        for special in ordered
        if any(longest.get(special.text[start:], 0) > special.length for start in range(1, len(special.text)))
    }
