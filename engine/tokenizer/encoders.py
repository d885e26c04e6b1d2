"""From a piece of plain text to token ids, one encoder per kind of vocabulary. Special tokens are no business of these.

Text may hold surrogate escapes for bytes that are not UTF-8; any other lone surrogate has been replaced before.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from engine.tokenizer.merging import merge
from engine.tokenizer.pretokenizer import Pretokenizer
from engine.tokenizer.unigram import UnigramEncoder
from engine.tokenizer.vocabulary import Vocabulary

SPACE = "\u2581"  # how SentencePiece writes a space
_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 64


class Encoder(Protocol):
    """Turns plain text into token ids."""

    def encode(self, text: str) -> list[int]: ...


def _printable_bytes() -> list[str]:
    """GPT-2's printable character for each byte: visible Latin-1 stands for itself, the rest follow from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


CHAR_OF_BYTE = _printable_bytes()
BYTE_OF_CHAR = {ord(char): byte for byte, char in enumerate(CHAR_OF_BYTE)}
_TO_PRINTABLE = dict(enumerate(CHAR_OF_BYTE))


def byte_token_ids(ids: Mapping[str, int]) -> list[int | None]:
    """The token <0xXX> of each byte, where the vocabulary has it."""
    return [ids.get(f"<0x{byte:02X}>") for byte in range(256)]


class BpeEncoder:
    """Byte-pair merges within words; byte-level (GPT-2), or over UTF-8 with byte tokens for the rest (Gemma 4)."""

    def __init__(self, vocabulary: Vocabulary, pretokenizer: Pretokenizer) -> None:
        self._vocabulary = vocabulary
        self._merges = vocabulary.merges
        self._pretokenizer = pretokenizer
        self._bytes = byte_token_ids(vocabulary.ids)
        self._cache: dict[str, list[int]] = {}

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self._vocabulary.plain_ids()

    @cached_property
    def _ranks(self) -> dict[str, int]:
        n = len(self._merges)
        return dict(zip(reversed(self._merges), range(n - 1, -1, -1), strict=True))  # the first of equals counts

    @cached_property
    def _joins(self) -> _WordJoins:
        return _WordJoins(self._merges, " ")

    def encode(self, text: str) -> list[int]:
        byte_level = self._pretokenizer.byte_level
        if not text.isascii():
            text = _without_bad_bytes(text)
        if not byte_level:
            text = text.replace(" ", SPACE)
        cache = self._cache
        out: list[int] = []
        for word in self._pretokenizer.split(text):
            if not byte_level and word[0] != "\n":
                for part in self._joins.split(word):
                    out.extend(cache.get(part) or self._remember(part))
            else:
                out.extend(cache.get(word) or self._remember(word))
        return out

    def _remember(self, word: str) -> list[int]:
        ids = self._encode_word(word)
        if len(word) <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _encode_word(self, word: str) -> list[int]:
        byte_level = self._pretokenizer.byte_level
        if byte_level:
            word = word.encode().decode("latin-1").translate(_TO_PRINTABLE)
        if self._pretokenizer.ignore_merges or (not byte_level and word[0] == "\n"):
            token = self._ids.get(word)
            if token is not None:
                return [token]
        out: list[int] = []
        for symbol in merge(word, self._ranks, " "):
            token = self._ids.get(symbol)
            if token is not None:
                out.append(token)
            elif byte_level:
                out.extend(self._ids[char] for char in symbol if char in self._ids)
            else:
                out.extend(token for byte in symbol.encode() if (token := self._bytes[byte]) is not None)
        return out


class SentencePieceEncoder:
    """SentencePiece BPE: the adjacent pair whose joint token scores best merges first; the rest becomes byte tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._unknown = vocabulary.special.get("unk")
        self._bytes = byte_token_ids(vocabulary.ids)
        self._cache: dict[str, list[int]] = {}

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self._vocabulary.plain_ids()

    @cached_property
    def _ranks(self) -> dict[str, int]:
        scores = self._vocabulary.scores
        assert scores is not None
        _, ranks = np.unique(-np.nan_to_num(scores[list(self._ids.values())]), return_inverse=True)
        return dict(zip(self._ids, ranks.tolist(), strict=True))

    @cached_property
    def _joins(self) -> _WordJoins:
        return _WordJoins(self._vocabulary.tokens, "")

    def encode(self, text: str) -> list[int]:
        cache = self._cache
        out: list[int] = []
        for part in self._joins.split(text.replace(" ", SPACE)):
            ids = cache.get(part)
            if ids is None:
                ids = self._encode_part(part)
                if len(part) <= _CACHED_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[part] = ids
            out.extend(ids)
        return out

    def _encode_part(self, part: str) -> list[int]:
        out: list[int] = []
        for symbol in merge(part, self._ranks, ""):
            token = self._ids.get(symbol)
            if token is not None:
                out.append(token)
                continue
            for byte in symbol.encode("utf-8", "surrogateescape"):
                token = self._bytes[byte]
                if token is None:
                    token = self._ids.get(chr(byte)) if byte < 0x80 else None
                if token is None:
                    token = self._unknown
                if token is not None:
                    out.append(token)
        return out


class _WordJoins:
    """Cuts text before a SPACE where no token reaches across, so that words can be merged one by one and remembered.

    Exact: a merge needs a token (or a merge rule) that holds both neighbours.
    """

    def __init__(self, texts: Sequence[str], joint: str) -> None:
        joined = "\0".join(texts)
        if joint:
            joined = joined.replace(joint, "")
        across = set(re.findall(f"([^\0{SPACE}]){SPACE}", joined))
        kept = "".join(re.escape(char) for char in sorted(across))
        self._cut = re.compile(f"(?<=[^{SPACE}{kept}])(?={SPACE})")

    def split(self, text: str) -> list[str]:
        return self._cut.split(text) if text else []


class WordPieceEncoder:
    """BERT's WordPiece: words by white space and punctuation, then the longest token that fits, left to right."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.plain_ids()
        self._longest = max(len(text) for text in vocabulary.tokens)
        self._unknown = vocabulary.special.get("unk")
        self._lowercase = vocabulary.lowercase
        self._strip_accents = vocabulary.strip_accents

    def encode(self, text: str) -> list[int]:
        out: list[int] = []
        for word in self._words(_without_bad_bytes(text)):
            out.extend(self._encode_word(SPACE + word))
        return out

    def _encode_word(self, word: str) -> list[int]:
        out: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                token = self._ids.get(word[start:end])
                if token is not None:
                    out.append(token)
                    start = end
                    break
            else:
                return [] if self._unknown is None else [self._unknown]
        return out

    def _words(self, text: str) -> list[str]:
        words: list[str] = [""]
        for char in text:
            if self._strip_accents:
                char = unicodedata.normalize("NFD", char)[0]
            category = unicodedata.category(char)
            if char in "\t\n\v\f\r \x85" or category in ("Zs", "Zl", "Zp"):
                words.append("")
                continue
            if char in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
                continue
            if self._strip_accents and category[0] == "M":
                continue
            if self._lowercase:
                lower = char.lower()
                char = lower if len(lower) == 1 else char
            if category[0] == "P" or (char < "\x7f" and category[0] == "S") or _is_chinese(ord(char)):
                words += [char, ""]
            else:
                words[-1] += char
        return [word for word in words if word]


def _is_chinese(code: int) -> bool:
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B920 <= code <= 0x2CEAF  # begins at 2B820 in Unicode; the published tokenizers have it so
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def _without_bad_bytes(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def make_encoder(vocabulary: Vocabulary) -> Encoder:
    """The encoder for the vocabulary's model."""
    if vocabulary.pretokenizer is not None:
        return BpeEncoder(vocabulary, vocabulary.pretokenizer)
    if vocabulary.model == "bert":
        return WordPieceEncoder(vocabulary)
    if vocabulary.model == "t5":
        return UnigramEncoder(vocabulary)
    return SentencePieceEncoder(vocabulary)
