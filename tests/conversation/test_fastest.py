"""Measuring which way of guessing answers fastest: same question, same length, one way after the other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from app.conversation import ChatOptions
from app.conversation.fastest import Measured, Way, fastest, measure_ways, standard_ways, trial_request
from app.store import ChatStore
from engine.api import DraftKind, Figures, Finished, GenerateRequest, LoadOptions, SamplingParams, StopReason, Token
from engine.errors import OutOfMemoryError, RequestError
from engine.job import Job, JobCancelled
from engine.stream import Stream

SPEEDS = {None: 20.0, DraftKind.NGRAM: 30.0, DraftKind.MODEL: 25.0}


class TrialEngine:
    """Answers each request at the speed of its way."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.loaded: list[Path] = []
        self.too_large: Path | None = None

    def load_draft(self, path: Path, options: LoadOptions) -> Job[None]:
        self.loaded.append(path)
        job: Job[None] = Job()
        if path == self.too_large:
            job.fail(OutOfMemoryError("There is no room for it."))
        else:
            job.succeed(None)
        return job

    def submit(self, request: GenerateRequest) -> Any:
        self.requests.append(request)
        stream = Stream()
        stream.claim()
        kind = request.draft.kind if request.draft else None
        measured = Figures(decode_tokens_per_s=SPEEDS[kind], drafted_tokens=10 if kind else 0, accepted_tokens=6)
        for number in range(request.max_tokens or 0):
            stream.put(Token(number, "x", measured))
        stream.put(Finished(StopReason.LENGTH, "", measured))
        return stream


@pytest.fixture
def chat(tmp_path: Path):
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        chat = store.create_chat("A chat")
        store.add_message(chat.id, "user", "one")
        store.add_message(chat.id, "assistant", "eins", figures={"generated_tokens": 3})
        store.add_message(chat.id, "user", "two")
        store.add_message(chat.id, "assistant", "zwei", figures={"generated_tokens": 70})
        yield store, chat.id


def test_the_last_question_is_answered_again_without_chance(chat):
    store, chat_id = chat
    options = ChatOptions("Be brief.", SamplingParams(temperature=1.2, seed=4, top_k=7), max_tokens=5)
    request = trial_request(store, chat_id, options)
    assert request.messages is not None
    assert [message["content"] for message in request.messages] == ["Be brief.", "one", "eins", "two"]
    assert (request.sampling.temperature, request.sampling.top_k) == (0.0, 7)
    assert request.max_tokens == 70, "as long as the last answer"
    assert request.session is None, "the chat's saved cache is not touched"
    with pytest.raises(RequestError, match="no answer to measure with"):
        trial_request(store, store.create_chat("empty").id, options)


def test_each_way_is_measured_in_turn(chat):
    store, chat_id = chat
    engine, ways = TrialEngine(), standard_ways([("small", Path("small.gguf")), ("large", Path("large.gguf"))])
    engine.too_large = Path("large.gguf")
    reports: list[tuple[str, float]] = []
    results = measure_ways(
        engine, trial_request(store, chat_id, ChatOptions()), ways,
        lambda way, share: reports.append((way.name, share)), threading.Event(),
    )  # fmt: skip
    assert [(r.way.name, r.tokens_per_s, r.accepted) for r in results] == [
        ("Off", 20.0, None), ("N-gram", 30.0, 0.6), ("small", 25.0, 0.6), ("large", 0.0, None),
    ]  # fmt: skip
    assert results[-1].problem == "There is no room for it."
    assert engine.loaded == [Path("small.gguf"), Path("large.gguf")]
    assert len({(str(r.messages), r.sampling.temperature) for r in engine.requests}) == 1
    shares = [share for _, share in reports]
    assert shares == sorted(shares)
    assert (shares[0], {name for name, _ in reports}) == (0.0, {"Off", "N-gram", "small", "large"})
    best = fastest(results)
    assert best is not None
    assert best.way.name == "N-gram"


def test_giving_up_ends_the_request(chat):
    store, chat_id = chat
    engine, cancelled = TrialEngine(), threading.Event()
    cancelled.set()
    with pytest.raises(JobCancelled):
        measure_ways(
            engine, trial_request(store, chat_id, ChatOptions()), standard_ways([]), lambda *_: None, cancelled
        )


def test_of_equals_the_simplest_is_kept():
    off, ngram = Way("Off"), Way("N-gram")
    best = fastest([Measured(off, 20.0), Measured(ngram, 20.3)])
    assert best is not None
    assert best.way is off
    assert fastest([Measured(off, problem="No.")]) is None
