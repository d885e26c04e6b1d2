"""Reading the stream of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engine.api import Failed, Figures, Finished, GenerateRequest, Started, StopReason, Token
from engine.errors import RealmError

if TYPE_CHECKING:
    from engine.engine import Engine


@dataclass(frozen=True)
class Answer:
    """A finished answer. `tokens` are those generated, without the end token; `logprobs`, where asked for, says of each
    of them (and of the end token behind them) how likely it was, and which were likeliest."""

    tokens: list[int]
    text: str
    prompt_tokens: int
    reason: StopReason
    figures: Figures
    logprobs: list[dict[str, Any]] | None = None

    def as_json(self) -> dict[str, Any]:
        answer = {
            "tokens": self.tokens,
            "text": self.text,
            "prompt_tokens": self.prompt_tokens,
            "stop_reason": self.reason.value,
            "timings": asdict(self.figures),
        }
        if self.logprobs is not None:
            answer["logprobs"] = self.logprobs
        return answer


def _logprob(event: Token) -> dict[str, Any]:
    likeliest = [{"token": other.token, "logprob": other.logprob} for other in event.alternatives]
    return {"token": event.token, "logprob": event.logprob, "top": likeliest}


def answer_request(engine: Engine, request: GenerateRequest, on_text: Callable[[str], None] | None = None) -> Answer:
    """Waits for the whole answer, telling `on_text` each piece as it comes; cancels it on Ctrl-C.

    Raises the RealmError that a failed request ended with.
    """
    stream = engine.submit(request)
    tokens: list[int] = []
    pieces: list[str] = []
    logprobs: list[dict[str, Any]] | None = [] if request.logprobs else None
    prompt_tokens = 0

    def add(text: str) -> None:
        if text:
            pieces.append(text)
            if on_text is not None:
                on_text(text)

    try:
        while not stream.done:
            for event in stream.wait(timeout=0.1):  # in short steps, so that Ctrl-C is heard on every system
                match event:
                    case Started():
                        prompt_tokens = event.prompt_tokens
                    case Token():
                        tokens.append(event.token)
                        if logprobs is not None:
                            logprobs.append(_logprob(event))
                        add(event.text)
                    case Finished():
                        add(event.text)
                        if event.reason is StopReason.EOS and tokens:
                            tokens.pop()  # the token that ended the answer is not part of it
                        return Answer(tokens, "".join(pieces), prompt_tokens, event.reason, event.figures, logprobs)
                    case Failed():
                        raise event.error
    except BaseException:
        stream.cancel()
        raise
    raise RealmError("The engine ended the answer without saying why.")


def figures_line(figures: Figures, reason: StopReason | None = None) -> str:
    """One line under an answer: speed, time to the first token, context used, and why it ended where that matters."""
    parts = []
    if figures.decode_tokens_per_s:
        parts.append(f"{figures.decode_tokens_per_s:.1f} tokens/s")
    if figures.time_to_first_token_s:
        parts.append(f"first token after {figures.time_to_first_token_s:.2f} s")
    if figures.context_length:
        parts.append(f"{figures.context_used} of {figures.context_length} tokens of context")
    ended = {
        StopReason.LENGTH: "stopped at the limit of tokens",
        StopReason.CONTEXT: "stopped because the context is full",
        StopReason.CANCELLED: "stopped",
    }
    if reason in ended:
        parts.append(ended[reason])
    return " · ".join(parts)
