"""A model's chat template, run in a sandbox with limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.tokenizer.tokenizer import HasMetadata, Tokenizer

PLAIN_CHAT_TEMPLATE = ""


class ChatTemplate:
    source: str
    bos_token: str
    eos_token: str

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        raise NotImplementedError

    @classmethod
    def from_gguf(cls, file: HasMetadata, tokenizer: Tokenizer) -> ChatTemplate | None:
        raise NotImplementedError

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **extra: Any,
    ) -> str:
        raise NotImplementedError
