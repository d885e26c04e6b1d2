"""Measures which way of guessing the next tokens answers fastest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from app.conversation.history import prompt_messages
from app.conversation.options import ChatOptions
from app.store import ChatStore
from engine.api import DraftInfo, DraftKind, DraftOptions, Event, Failed, Finished, GenerateRequest, LoadOptions, Token
from engine.errors import RealmError, RequestError
from engine.job import JobCancelled

SHORTEST, LONGEST = 48, 160
"""How many tokens are written for each way: as many as the last answer has, within these bounds."""
FIRST_TOKENS = 8
"""How many are written with a draft before it is measured."""


@dataclass(frozen=True)
class Way:
    """A way of guessing; `path` is that of the draft model where there is one. Neither: guessing is off."""

    name: str
    draft: DraftOptions | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Measured:
    """tokens_per_s: 0 where `problem` says why there is no speed. accepted: share of the guesses that were right."""

    way: Way
    tokens_per_s: float = 0.0
    accepted: float | None = None
    problem: str = ""


class TrialStream(Protocol):
    @property
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> list[Event]: ...
    def cancel(self) -> None: ...


class TrialEngine(Protocol):
    """What a trial needs of engine.engine.Engine."""

    def submit(self, request: GenerateRequest) -> Any: ...
    def load_draft(self, path: Path, options: LoadOptions) -> Any: ...


def trial_request(store: ChatStore, chat_id: int, options: ChatOptions) -> GenerateRequest:
    """The chat's last question once more, answered greedily, so that every way of guessing writes the same text.

    Raises RequestError for a chat without an answer.
    """
    messages = store.messages(chat_id)
    asked = [place for place, message in enumerate(messages) if message.role == "user"]
    answers = (
        [message for message in messages[asked[-1] :] if message.content and message.role != "user"] if asked else []
    )
    if not answers:
        raise RequestError("There is no answer to measure with.", "Ask something first.")
    tokens = (answers[-1].figures or {}).get("generated_tokens")
    length = tokens if isinstance(tokens, int) else LONGEST
    return GenerateRequest(
        messages=prompt_messages(messages[: asked[-1] + 1], options.system_prompt),
        sampling=replace(options.sampling, temperature=0.0, seed=None),
        max_tokens=max(SHORTEST, min(LONGEST, length)),
        ignore_eos=True,
        plain_template=options.plain_template,
        adapters=options.adapter_uses(),
        context_policy=options.context_policy,
    )


def measure_ways(
    engine: TrialEngine,
    request: GenerateRequest,
    ways: Sequence[Way],
    report: Callable[[Way, float], None],
    cancelled: threading.Event,
    options: LoadOptions | None = None,
) -> list[Measured]:
    """Runs the request once for each way, and waits for each.

    options: how draft models are loaded.
    report: gets the way under trial and the share done of the whole. A way that fails has its sentence in the result;
    when the engine itself has no model any more, what it says is raised. Raises JobCancelled.
    """
    results = []
    loaded: Path | None = None
    # The first run computes the prompt for all: it would count against whichever way came first.
    _run(engine, replace(request, max_tokens=1), lambda _share: None, cancelled)
    for number, way in enumerate(ways):
        note = partial(_report_part, report, way, number, len(ways))
        note(0.0)
        try:
            if way.path is not None and way.path != loaded:
                _wait(engine.load_draft(way.path, options or LoadOptions()), cancelled)
                loaded = way.path
                # A device may compile what a draft takes when it first runs, which takes longer than the trial.
                _run(engine, replace(request, draft=way.draft, max_tokens=FIRST_TOKENS), lambda _share: None, cancelled)
            finished = _run(engine, replace(request, draft=way.draft), note, cancelled)
        except JobCancelled:
            raise
        except RealmError as error:
            results.append(Measured(way, problem=str(error)))
        else:
            figures = finished.figures
            accepted = figures.accepted_tokens / figures.drafted_tokens if figures.drafted_tokens else None
            results.append(Measured(way, figures.decode_tokens_per_s, accepted))
    return results


def _report_part(report: Callable[[Way, float], None], way: Way, number: int, count: int, share: float) -> None:
    report(way, (number + share) / count)


def fastest(results: Sequence[Measured]) -> Measured | None:
    """The best of those that ran; of equals (within 2 %) the simplest, which comes first."""
    ran = [result for result in results if result.tokens_per_s > 0]
    if not ran:
        return None
    best = max(result.tokens_per_s for result in ran)
    return next(result for result in ran if result.tokens_per_s >= 0.98 * best)


def _wait(job: Any, cancelled: threading.Event) -> DraftInfo:
    while not job.done():
        if cancelled.wait(0.05):
            job.cancel()
            raise JobCancelled
    info: DraftInfo = job.result()
    return info


def _run(
    engine: TrialEngine, request: GenerateRequest, report: Callable[[float], None], cancelled: threading.Event
) -> Finished:
    stream: TrialStream = engine.submit(request)
    tokens = 0
    while not stream.done:
        if cancelled.is_set():
            stream.cancel()
            raise JobCancelled
        for event in stream.wait(0.1):
            match event:
                case Token():
                    tokens += 1
                    report(tokens / (request.max_tokens or LONGEST))
                case Finished():
                    return event
                case Failed(error):
                    raise error
    raise RequestError("The engine ended this without a word.", "Try again.")


def standard_ways(drafts: Sequence[tuple[str, Path]], options: DraftOptions | None = None) -> list[Way]:
    """Off, n-gram, and each draft model (name, path), guessing as long as `options` say."""
    base = options or DraftOptions(DraftKind.NGRAM)
    return [
        Way("Off"),
        Way("N-gram", replace(base, kind=DraftKind.NGRAM)),
        *(Way(name, replace(base, kind=DraftKind.MODEL), path) for name, path in drafts),
    ]
