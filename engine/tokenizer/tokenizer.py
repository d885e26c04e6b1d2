"""The tokenizer of a model: text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class HasMetadata(Protocol):
    """What the tokenizer reads of a GGUF file."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class StreamDecoder:
    """Assembles text from tokens as they come; only whole UTF-8 characters come out."""

    def push(self, token: int) -> str:
        """Returns the text that became certain with this token; may be empty."""
        raise NotImplementedError

    def flush(self) -> str:
        """Returns what is left at the end; bytes that are no character become U+FFFD."""
        raise NotImplementedError


class Tokenizer:
    """Text to token ids and back. Immutable once made, so any thread may use it."""

    model: str
    pre: str
    n_vocab: int
    bos: int | None
    eos: int | None
    end_tokens: frozenset[int]
    add_bos: bool
    add_eos: bool
    warnings: tuple[str, ...]

    @classmethod
    def from_gguf(cls, file: HasMetadata) -> Tokenizer:
        """Builds the tokenizer of a model. Raises TokenizerError or UnsupportedModelError, naming the metadata key."""
        raise NotImplementedError

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int], *, keep_special: bool = True) -> str:
        raise NotImplementedError

    def decode_bytes(self, ids: Iterable[int], *, keep_special: bool = True) -> bytes:
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        raise NotImplementedError

    def stream_decoder(self) -> StreamDecoder:
        raise NotImplementedError
