"""SentencePiece's unigram model (T5 and its kin): the cut of the text whose tokens have the best sum of scores."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cached_property

from engine.errors import TokenizerError
from engine.tokenizer.vocabulary import PREFIX, Attr, Vocabulary

_SPACE = "\u2581"
_UNKNOWN_PENALTY = 10.0


class UnigramEncoder:
    """Viterbi search over the tokens that fit at each character (Kudo 2018, as SentencePiece runs it)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._unknown = vocabulary.special.get("unk", 0)
        self._normalizer = CharsMap(vocabulary.precompiled_charsmap) if vocabulary.precompiled_charsmap else None

    @cached_property
    def _pieces(self) -> tuple[Mapping[str, tuple[int, float]], int, float]:
        """Id and score of each token that may be chosen, their greatest length, the score of an unknown character."""
        vocabulary = self._vocabulary
        assert vocabulary.scores is not None
        usable = Attr.NORMAL | Attr.USER_DEFINED | Attr.UNUSED
        pieces: dict[str, tuple[int, float]] = {}
        lowest = 0.0
        for text, token in vocabulary.ids.items():
            attr = int(vocabulary.attrs[token])
            score = float(vocabulary.scores[token])
            if attr & Attr.NORMAL:
                lowest = min(lowest, score)
            if attr & usable:
                pieces[text] = (token, 0.0 if attr & Attr.USER_DEFINED else score)
        longest = max(map(len, pieces), default=1)
        return pieces, longest, lowest - _UNKNOWN_PENALTY

    def encode(self, text: str) -> list[int]:
        text = self._normalize(text.encode("utf-8", "replace").decode())
        pieces, longest, unknown_score = self._pieces
        n = len(text)
        best = [0.0] + [float("-inf")] * n
        chosen = [(self._unknown, 0)] * (n + 1)  # the token that ends here and where it begins
        for start in range(n):
            base = best[start]
            for end in range(start + 1, min(n, start + longest) + 1):
                piece = pieces.get(text[start:end])
                if piece is not None and base + piece[1] > best[end]:
                    best[end] = base + piece[1]
                    chosen[end] = (piece[0], start)
            if text[start] not in pieces and base + unknown_score > best[start + 1]:
                best[start + 1] = base + unknown_score
                chosen[start + 1] = (self._unknown, start)
        out: list[int] = []
        at = n
        while at:
            token, at = chosen[at]
            if not (out and out[-1] == token == self._unknown):
                out.append(token)
        return out[::-1]

    def _normalize(self, text: str) -> str:
        if self._normalizer is not None:
            text = self._normalizer.apply(text)
        if self._vocabulary.remove_extra_whitespaces:
            words = [word for word in text.split(" ") if word]
            return "".join(_SPACE + word for word in words)
        if not text:
            return ""
        lead = _SPACE if self._vocabulary.add_space_prefix else ""
        first = len(text) - len(text.lstrip(" "))
        # The space goes before the first character that is none.
        body = text[:first] + (lead if first < len(text) else "") + text[first:]
        return body.replace(" ", _SPACE)


class CharsMap:
    """SentencePiece's precompiled normalisation: a double-array trie of UTF-8 prefixes and their replacements.

    Layout: uint32 size of the trie in bytes, the trie (uint32 units), then NUL-terminated replacements. A unit holds a
    label in bits 0-7 and 31, a leaf flag in bit 8 and an offset in bits 10-30, scaled by 256 if bit 9 is set
    (the Darts-clone format).
    """

    def __init__(self, blob: bytes) -> None:
        size = struct.unpack_from("<I", blob)[0] if len(blob) >= 4 else 0
        if size % 4 or size == 0 or 4 + size >= len(blob):
            raise TokenizerError(f"{PREFIX}precompiled_charsmap is damaged.", "Download the file again.")
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._texts = blob[4 + size :]

    def apply(self, text: str) -> str:
        raw = text.encode()
        out = bytearray()
        at = 0
        while at < len(raw):
            length, replacement = self._longest(raw, at)
            if length:
                out += replacement
                at += length
            else:
                end = at + 1
                while end < len(raw) and raw[end] & 0xC0 == 0x80:
                    end += 1
                out += raw[at:end]
                at = end
        return out.decode("utf-8", "replace")

    def _longest(self, raw: bytes, start: int) -> tuple[int, bytes]:
        """The longest prefix of raw[start:] that the map replaces: its length (0 if none) and the replacement."""
        units = self._units
        found = 0
        value = 0
        try:
            node = _offset(units[0])
            for at in range(start, len(raw)):
                byte = raw[at]
                if byte == 0:
                    break
                node ^= byte
                unit = units[node]
                if unit & 0x800000FF != byte:
                    break
                node ^= _offset(unit)
                if unit >> 8 & 1:
                    found = at - start + 1
                    value = units[node] & 0x7FFFFFFF
            if not found:
                return 0, b""
            return found, self._texts[value : self._texts.index(b"\0", value)]
        except (IndexError, ValueError):
            raise TokenizerError(f"{PREFIX}precompiled_charsmap is damaged.", "Download the file again.") from None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)
