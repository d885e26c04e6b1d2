"""A chat's session through the engine: saved when an answer ends, used when its prompt comes again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.api import Failed, Finished, GenerateRequest, Started, Token
from engine.batch import KV_BLOCK
from engine.engine import Engine
from tests.engine.fakes import GREEDY, FakeBundle, FakeModel, loader_of, lone_run

WAIT = 20.0
PROMPT = [*range(100)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    (tmp_path / "fake.gguf").write_bytes(b"GGUF")
    engines: list[Engine] = []

    def run(model: FakeModel) -> Engine:
        engine = Engine(loader_of(FakeBundle(model)))
        engines.append(engine)
        engine.load(tmp_path / "fake.gguf").result(WAIT)
        return engine

    yield run
    for engine in engines:
        engine.close()


def ask(engine: Engine, prompt: list[int], session: Any, n: int = 20) -> tuple[list[int], Started, Finished]:
    request = GenerateRequest(prompt_tokens=prompt, max_tokens=n, sampling=GREEDY, ignore_eos=True, session=session)
    events = list(engine.submit(request))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert engine.sessions_saved().result(WAIT) == ()
    return [event.token for event in events if isinstance(event, Token)], events[0], events[-1]


def test_reopening_a_chat_computes_only_what_is_new(start: Callable[..., Engine], tmp_path: Path) -> None:
    file = tmp_path / "chat.session"
    tokens, _, _ = ask(start(FakeModel()), PROMPT, file)
    turn = [*PROMPT, *tokens, 7, 8]
    model = FakeModel()
    engine = start(model)
    again, started, finished = ask(engine, turn, file)
    assert again == lone_run(turn, 20, ignore_eos=True)
    assert finished.figures.cached_tokens == 119 // KV_BLOCK * KV_BLOCK
    assert len(model.batches[0].tokens) == len(turn) - finished.figures.cached_tokens
    assert started.note == ""
    longer = [*turn, *again, 9]
    third = FakeModel()
    assert ask(start(third), longer, file)[2].figures.cached_tokens == 141 // KV_BLOCK * KV_BLOCK


def test_a_damaged_session_is_said_and_costs_a_prefill(start: Callable[..., Engine], tmp_path: Path) -> None:
    file = tmp_path / "chat.session"
    ask(start(FakeModel()), PROMPT, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + b"wrong")
    tokens, started, finished = ask(start(FakeModel()), PROMPT, file)
    assert tokens == lone_run(PROMPT, 20, ignore_eos=True)
    assert "damaged" in started.note
    assert finished.figures.cached_tokens == 2 * KV_BLOCK
    assert file.read_bytes() == whole  # and is whole again
    file.write_bytes(b"REALMKV1 but not really")
    tokens, started, finished = ask(start(FakeModel()), PROMPT, file)
    assert tokens == lone_run(PROMPT, 20, ignore_eos=True)
    assert "damaged" in started.note
    assert finished.figures.cached_tokens == 0


def test_other_requests_run_while_a_session_is_read(start: Callable[..., Engine], tmp_path: Path) -> None:
    file = tmp_path / "chat.session"
    ask(start(FakeModel()), PROMPT, file)
    engine = start(FakeModel())
    streams = [
        engine.submit(GenerateRequest(prompt_tokens=[n, *PROMPT], max_tokens=30, sampling=GREEDY, ignore_eos=True))
        for n in range(3)
    ]
    assert ask(engine, PROMPT, file)[0] == lone_run(PROMPT, 20, ignore_eos=True)
    for n, stream in enumerate(streams):
        tokens = [event.token for event in stream if isinstance(event, Token)]
        assert tokens == lone_run([n, *PROMPT], 30, ignore_eos=True)


def test_a_cancelled_answer_is_saved_and_a_session_that_cannot_be_written_is_said(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    file = tmp_path / "chat.session"
    engine = start(FakeModel(n_blocks=300))
    stream = engine.submit(
        GenerateRequest(prompt_tokens=PROMPT, max_tokens=None, sampling=GREEDY, ignore_eos=True, session=file)
    )
    while not any(isinstance(event, Token) for event in stream.wait(1)):
        pass
    stream.cancel()
    list(stream)
    assert engine.sessions_saved().result(WAIT) == ()
    assert file.exists()
    request = GenerateRequest(prompt_tokens=PROMPT, max_tokens=1, sampling=GREEDY, session=tmp_path)
    events = list(engine.submit(request))
    assert isinstance(events[-1], Finished)
    [problem] = engine.sessions_saved().result(WAIT)
    assert "could not be written" in problem


def test_a_session_that_is_no_path_is_refused(start: Callable[..., Engine]) -> None:
    [failed] = list(start(FakeModel()).submit(GenerateRequest(prompt_tokens=[1], session="x")))  # type: ignore[arg-type]
    assert isinstance(failed, Failed)
    assert "session is 'x'" in failed.error.message
