"""Messages to token ids, without letting a message forge a special token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.chat_template.template import ChatTemplate
from engine.tokenizer import Tokenizer


def render_chat_tokens(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **extra: Any,
) -> list[int]:
    raise NotImplementedError
