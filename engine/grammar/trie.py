"""The tokens of a vocabulary as a tree of bytes, in arrays, so that all of them can be walked at once."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

# Bytes that grammars tend to treat alike, so that what a branch of the tree is spelled with fits into 64 bits.
_ALIKE = [b"\0\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c", bytes(range(14, 32)), b"123456789", b"ABCDEF",
          bytes(range(ord("G"), ord("Z") + 1)), b"acde", b"ghijklm", b"opq", b"svwxyz"]  # fmt: skip
MULTIBYTE = np.uint64(1 << 63)  # any character of several bytes, if it is spelled whole
UNKNOWN = np.uint64(1 << 62)  # bytes that are no UTF-8 where they stand


def _classes() -> NDArray[np.uint64]:
    grouped = {byte: number for number, group in enumerate(_ALIKE) for byte in group}
    numbers: dict[int, int] = {}
    bits = [1 << numbers.setdefault(grouped.get(byte, 256 + byte), len(numbers)) for byte in range(128)]
    return np.array([*bits, *[int(MULTIBYTE)] * 128], np.uint64)


CLASS_BITS = _classes()
"""uint64 [256]: one bit for the class of each byte."""


def _utf8_table() -> NDArray[np.int8]:
    """int8 [9, 256]: decoding UTF-8, from state and byte to the next; 0 between characters, 8 where it is none."""
    table = np.full((9, 256), 8, np.int8)
    table[0, :0x80] = 0
    table[0, 0xC2:0xE0], table[0, 0xE0], table[0, 0xE1:0xF0], table[0, 0xED] = 1, 4, 2, 5
    table[0, 0xF0], table[0, 0xF1:0xF4], table[0, 0xF4] = 6, 3, 7
    table[1, 0x80:0xC0], table[2, 0x80:0xC0], table[3, 0x80:0xC0] = 0, 1, 2
    table[4, 0xA0:0xC0], table[5, 0x80:0xA0], table[6, 0x90:0xC0], table[7, 0x80:0x90] = 1, 1, 2, 2
    return table


_UTF8 = _utf8_table()


class Spelling(Protocol):
    """What a grammar needs to know of a vocabulary; `engine.tokenizer.Tokenizer` has it."""

    @property
    def n_vocab(self) -> int: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...
    def text_pieces(self) -> list[bytes]: ...
    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


class TokenTrie:
    """All tokens that spell text. Control tokens are not among them: a reader does not see them.

    Node 0 is the root; the nodes of a depth lie together, and so do the children of a node. Per node:
    byte uint8: that leads to it. first_child, n_children int32. token int32: the token that ends here, or -1.
    below uint64: the classes of the bytes under the node. first, last int32: its tokens and those under it are
    by_text[first:last], tokens in the order of their texts.
    inside int8: 0 where a character is complete. twins int32 [n, 2]: tokens spelled like another one, and that one.
    """

    def __init__(self, spelling: Spelling, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.pieces = spelling.text_pieces()[:n_vocab]
        self._build()

    def _build(self) -> None:
        lengths = np.fromiter(map(len, self.pieces), np.int64, self.n_vocab)
        text = np.frombuffer(b"".join(self.pieces), np.uint8)
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        alive = np.flatnonzero(lengths > 0)
        at = np.zeros(len(alive), np.int64)  # the node that each living token has come to
        byte, first, count = [np.zeros(1, np.uint8)], [], []
        ends = np.zeros(self.n_vocab, np.int64)
        known, last_level = 1, np.zeros(1, np.int64)
        depth = 0
        while len(alive):
            steps = at * 256 + text[offsets[alive] + depth]
            new, place = np.unique(steps, return_inverse=True)
            children = np.bincount(new // 256 - last_level[0], minlength=len(last_level))
            first.append(known + np.concatenate([[0], np.cumsum(children)[:-1]]))
            count.append(children)
            byte.append((new % 256).astype(np.uint8))
            last_level = known + np.arange(len(new))
            at = last_level[place]
            known += len(new)
            depth += 1
            done = lengths[alive] == depth
            ends[alive[done]] = at[done]
            alive, at = alive[~done], at[~done]
        first.append(np.zeros(len(last_level), np.int64))
        count.append(np.zeros(len(last_level), np.int64))
        self.byte = np.concatenate(byte)
        self.first_child = np.concatenate(first).astype(np.int32)
        self.n_children = np.concatenate(count).astype(np.int32)
        self.token = np.full(known, -1, np.int32)
        spelled = np.flatnonzero(lengths > 0)[::-1]  # of tokens that are spelled alike the first stays
        self.token[ends[spelled]] = spelled
        same = self.token[ends[spelled]]
        twins = spelled != same
        self.twins = np.stack([spelled[twins], same[twins]], axis=1).astype(np.int32)
        self._describe_branches([len(level) for level in byte])

    def _describe_branches(self, sizes: list[int]) -> None:
        """below, first, last and by_text; sizes: the nodes of each depth."""
        levels = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
        parent = np.repeat(np.arange(len(self.byte)), self.n_children)  # of each node but the root
        kind = np.zeros(len(self.byte), np.int8)
        own = CLASS_BITS[self.byte]
        for level in levels[1:]:
            kind[level] = _UTF8[kind[parent[level.start - 1 : level.stop - 1]], self.byte[level]]
        own[kind == 8] = UNKNOWN
        self.below = np.zeros(len(self.byte), np.uint64)
        size = (self.token >= 0).astype(np.int64)
        for level in reversed(levels[1:]):
            above = parent[level.start - 1 : level.stop - 1]
            np.bitwise_or.at(self.below, above, self.below[level] | own[level])
            np.add.at(size, above, size[level])
        first = np.zeros(len(self.byte), np.int64)
        for deeper in levels[1:]:
            # the children of a node share what it has but its own token; each begins where the one before it ends
            above = parent[deeper.start - 1 : deeper.stop - 1]
            sums = np.cumsum(size[deeper]) - size[deeper]
            first_sums = sums[self.first_child[above] - deeper.start]
            first[deeper] = first[above] + (self.token[above] >= 0) + sums - first_sums
        self.first, self.last = first.astype(np.int32), (first + size).astype(np.int32)
        self.by_text = np.zeros(int(size[0]), np.int32)
        ends = np.flatnonzero(self.token >= 0)
        self.by_text[first[ends]] = self.token[ends]
        self.inside = kind  # 0 where a character is complete


_known: WeakKeyDictionary[Spelling, TokenTrie] = WeakKeyDictionary()


def token_trie(spelling: Spelling, n_vocab: int) -> TokenTrie:
    """The tree of a vocabulary, built once; n_vocab: how many of its tokens may be drawn."""
    trie = _known.get(spelling)
    if trie is None or trie.n_vocab != n_vocab:
        trie = _known[spelling] = TokenTrie(spelling, n_vocab)
    return trie
