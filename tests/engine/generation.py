"""A whole answer at once, for callers that need no stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.api import Event, Failed, Figures, Finished, GenerateRequest, Started, StopReason, Token
from engine.engine import Engine


@dataclass(frozen=True)
class Generation:
    """tokens: the answer's tokens, the end token included when the model gave one. text: without it."""

    tokens: list[int]
    text: str
    stop_reason: StopReason
    prompt_tokens: int
    figures: Figures


def generate(engine: Engine, request: GenerateRequest, on_event: Callable[[Event], None] | None = None) -> Generation:
    """Submits a request and waits for its end, handing each event to `on_event` as it comes.

    Raises the error of a failed request. Whatever interrupts the wait cancels the request.
    """
    stream = engine.submit(request)
    tokens: list[int] = []
    texts: list[str] = []
    n_prompt = 0
    try:
        for event in stream:
            if on_event is not None:
                on_event(event)
            match event:
                case Started():
                    n_prompt = event.prompt_tokens
                case Token():
                    tokens.append(event.token)
                    texts.append(event.text)
                case Finished():
                    text = "".join([*texts, event.text])
                    return Generation(tokens, text, event.reason, n_prompt, event.figures)
                case Failed():
                    raise event.error
    except BaseException:
        stream.cancel()
        raise
    raise AssertionError("a stream ends with Finished or Failed")
