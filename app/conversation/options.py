"""How a chat is answered: system prompt, sampling, length and stop strings, kept with the chat."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.api import SamplingParams


@dataclass(frozen=True)
class ChatOptions:
    """Every field changes what the engine is asked.

    max_tokens: the longest answer in tokens; None means until the model stops or the context is full.
    stop: strings that end an answer; the answer ends before them.
    """

    system_prompt: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
