"""Vocabularies made of texts."""

from __future__ import annotations

from collections.abc import Sequence


class Spelled:
    """Token n is the n-th text; the last tokens are `</s>`, which ends an answer, and `<think>`, which is hidden."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = [*texts, b"", b""]
        self.n_vocab = len(self.texts)
        self.end = self.n_vocab - 2
        self.think = self.n_vocab - 1
        self.end_tokens = frozenset({self.end})

    def text_pieces(self) -> list[bytes]:
        return self.texts

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        if parse_special and text == "<think>":
            return [self.think]
        return [self.texts.index(bytes([byte])) for byte in text.encode()]
