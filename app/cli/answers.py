"""Reading the stream of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from app.cli.drafts import guesses_text
from app.cli.terminal import say, write_answer
from engine.api import Failed, Figures, Finished, GenerateRequest, Started, StopReason, Token
from engine.errors import RealmError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.stream import Stream


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


def answer_request(engine: Engine, request: GenerateRequest, on_text: Callable[[str], None] = lambda _: None) -> Answer:
    """Waits for the whole answer, telling `on_text` each piece as it comes; cancels it on Ctrl-C.

    Raises the RealmError that a failed request ended with.
    """
    stream = engine.submit(request)
    try:
        return _read(stream, request, on_text)
    except BaseException:
        stream.cancel()
        raise


def answer_parallel(engine: Engine, request: GenerateRequest, n: int) -> list[Answer]:
    """Waits for n answers to one request, as `answer_request` does for one."""
    streams = engine.submit_parallel(request, n)
    try:
        return [_read(stream, request, lambda _: None) for stream in streams]
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise


def _read(stream: Stream, request: GenerateRequest, on_text: Callable[[str], None]) -> Answer:
    tokens: list[int] = []
    pieces: list[str] = []
    logprobs: list[dict[str, Any]] | None = [] if request.logprobs else None
    prompt_tokens = 0

    def add(text: str) -> None:
        if text:
            pieces.append(text)
            on_text(text)

    while not stream.done:
        for event in stream.wait(timeout=0.1):  # in short steps, so that Ctrl-C is heard on every system
            match event:
                case Started():
                    prompt_tokens = event.prompt_tokens
                    if event.note:
                        say(f"Note: {event.note}")
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
    raise RealmError("The engine ended the answer without saying why.")


def write_end(answer: Answer) -> None:
    """Ends the line of an answer whose text has been written, and tells its figures."""
    if not answer.text.endswith("\n"):
        print(flush=True)
    say(figures_line(answer.figures, answer.reason), "dim")


def write_answers(answers: Sequence[Answer]) -> None:
    """Parallel answers one after the other, each with its number on stderr above it."""
    for number, answer in enumerate(answers, 1):
        say(f"Answer {number} of {len(answers)}", "bold")
        write_answer(answer.text)
        write_end(answer)


def figures_line(figures: Figures, reason: StopReason | None = None) -> str:
    """One line under an answer: speed, time to the first token, context used, and why it ended where that matters."""
    parts = []
    if figures.decode_tokens_per_s:
        parts.append(f"{figures.decode_tokens_per_s:.1f} tokens/s")
    if figures.time_to_first_token_s:
        parts.append(f"first token after {figures.time_to_first_token_s:.2f} s")
    if figures.context_length:
        parts.append(f"{figures.context_used} of {figures.context_length} tokens of context")
    if figures.dropped_tokens:
        parts.append(f"{figures.dropped_tokens} tokens dropped")
    if guesses := guesses_text(figures):
        parts.append(guesses)
    ended = {
        StopReason.LENGTH: "stopped at the limit of tokens",
        StopReason.CONTEXT: "stopped because the context is full",
        StopReason.CANCELLED: "stopped",
    }
    if reason in ended:
        parts.append(ended[reason])
    return " · ".join(parts)
