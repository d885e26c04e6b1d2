"""A context that runs full: what stays, and that what follows equals a lone run from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import engine.request
from engine.api import (
    ContextPolicy,
    DraftKind,
    DraftOptions,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    StopReason,
    Token,
)
from engine.context import SINKS, DropOldest, Shift
from engine.engine import Engine
from engine.errors import ContextFullError, RequestError
from tests.engine.fakes import GREEDY, FakeBundle, FakeModel, loader_of, lone_run

WAIT = 20.0
CONTEXT = 64
SHIFT, DROP = ContextPolicy.SHIFT, ContextPolicy.DROP_OLDEST


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    (tmp_path / "fake.gguf").write_bytes(b"GGUF")
    engines: list[Engine] = []

    def run(n_blocks: int = 8) -> Engine:
        engines.append(Engine(loader_of(FakeBundle(FakeModel(n_blocks), context_length=CONTEXT))))
        engines[-1].load(tmp_path / "fake.gguf").result(WAIT)
        return engines[-1]

    yield run
    for started in engines:
        started.close()


@pytest.fixture(autouse=True)
def _render(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.request, "render_chat_tokens", rendered)


def rendered(_: Any, __: Any, messages: Any, **___: Any) -> list[int]:
    return [1, *(byte for message in messages for byte in [2, *message["content"].encode()]), 3]


def shifting_run(prompt: list[int], n: int) -> list[int]:
    tokens, answer = list(prompt), []
    while len(answer) < n:
        answer += lone_run(tokens, 1, ignore_eos=True)
        tokens.append(answer[-1])
        if len(tokens) == CONTEXT:
            tokens = tokens[:SINKS] + tokens[-(CONTEXT - SINKS) // 2 :]
    return answer


def events_of(engine: Engine, **more: Any) -> tuple[list[int], Finished]:
    more = {"sampling": GREEDY, "ignore_eos": True, **more}
    events = list(engine.submit(GenerateRequest(**more)))
    last = events[-1]
    assert isinstance(last, Finished), last
    return [event.token for event in events if isinstance(event, Token)], last


@pytest.mark.parametrize("draft", [None, DraftOptions(DraftKind.NGRAM)])
def test_shifting_goes_on_from_the_first_and_the_latest_tokens(start: Callable[..., Engine], draft: Any) -> None:
    prompt = list(range(20))
    tokens, last = events_of(start(), prompt_tokens=prompt, max_tokens=200, context_policy=SHIFT, draft=draft)
    assert tokens == shifting_run(prompt, 200)
    assert last.reason is StopReason.LENGTH
    figures = last.figures
    assert (figures.prompt_tokens, figures.generated_tokens) == (20, 200)
    assert figures.context_used + figures.dropped_tokens == 220
    assert figures.context_used < CONTEXT


def test_shifting_sequences_share_a_small_cache(start: Callable[..., Engine]) -> None:
    engine = start(3)
    prompts = [[n, *range(30)] for n in range(3)]
    requests = [
        GenerateRequest(prompt_tokens=prompt, max_tokens=90, sampling=GREEDY, ignore_eos=True, context_policy=SHIFT)
        for prompt in prompts
    ]
    streams = [engine.submit(request) for request in requests]
    for prompt, stream in zip(prompts, streams, strict=True):
        assert [event.token for event in stream if isinstance(event, Token)] == shifting_run(prompt, 90)


def test_a_prompt_that_is_too_long_is_shifted(start: Callable[..., Engine]) -> None:
    prompt = [n % 250 for n in range(500)]
    kept = [*prompt[:SINKS], *prompt[-(CONTEXT * 3 // 4 - SINKS) :]]
    tokens, last = events_of(start(), prompt_tokens=prompt, max_tokens=50, context_policy=SHIFT)
    assert tokens == shifting_run(kept, 50)
    assert last.figures.prompt_tokens == len(kept)
    assert last.figures.dropped_tokens >= 500 - len(kept)


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ["system", *["user", "assistant"] * len(contents)]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def test_the_oldest_turns_are_dropped_and_the_system_prompt_stays(start: Callable[..., Engine]) -> None:
    chat = turns("system", "old question " * 3, "old answer " * 2, "second", "answer", "now what?")
    engine = start()
    tokens, last = events_of(engine, messages=chat, max_tokens=5, context_policy=DROP)
    kept = rendered(None, None, [chat[0], *chat[3:]])
    assert tokens == lone_run(kept, 5, ignore_eos=True)
    assert last.figures.prompt_tokens == len(kept)
    assert last.figures.dropped_tokens == len(rendered(None, None, chat)) - len(kept)


def test_an_answer_goes_on_without_the_oldest_turns(start: Callable[..., Engine]) -> None:
    chat = turns("system", "a question", "an answer", "second", "answer", "now?")
    before, after = rendered(None, None, chat), rendered(None, None, [chat[0], *chat[3:]])
    first = lone_run(before, CONTEXT - len(before), ignore_eos=True)
    after += first
    tokens, last = events_of(start(), messages=chat, max_tokens=len(first) + 10, context_policy=DROP)
    if len(after) > CONTEXT * 3 // 4:
        after = rendered(None, None, [chat[0], chat[5]]) + first
    assert tokens == first + lone_run(after, 10, ignore_eos=True)
    assert last.reason is StopReason.LENGTH
    assert last.figures.dropped_tokens == CONTEXT - len(after)


def test_an_answer_with_nothing_left_to_drop_ends(start: Callable[..., Engine]) -> None:
    chat = turns("system", "a question", "an answer", "now?")
    tokens, last = events_of(start(), messages=chat, max_tokens=None, context_policy=DROP)
    assert last.reason is StopReason.CONTEXT
    assert len(tokens) == last.figures.generated_tokens
    assert last.figures.context_used == CONTEXT


def test_one_message_that_is_too_long_alone_is_refused_with_the_numbers(start: Callable[..., Engine]) -> None:
    chat = turns("system", "old", "answer", "x" * 100)
    [failed] = list(start().submit(GenerateRequest(messages=chat, context_policy=DROP)))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ContextFullError)
    assert "have 110 tokens" in failed.error.message
    assert "holds 64" in failed.error.message


def test_stopping_is_what_happens_unless_asked_otherwise(start: Callable[..., Engine]) -> None:
    [failed] = list(start().submit(GenerateRequest(prompt_tokens=[1] * 100)))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ContextFullError)
    assert events_of(start(), prompt_tokens=[1] * 60, max_tokens=None)[1].reason is StopReason.CONTEXT


@pytest.mark.parametrize("policy", ["shift", "forget", None])
def test_a_policy_that_is_none_is_refused(start: Callable[..., Engine], policy: Any) -> None:
    [failed] = list(start().submit(GenerateRequest(prompt_tokens=[1], context_policy=policy)))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RequestError)


def test_turns_need_messages(start: Callable[..., Engine]) -> None:
    [failed] = list(start().submit(GenerateRequest(prompt_tokens=[1], context_policy=DROP)))
    assert isinstance(failed, Failed)
    assert "no messages" in failed.error.message


def test_parallel_answers_shift_each_for_itself(start: Callable[..., Engine]) -> None:
    request = GenerateRequest(
        prompt_tokens=list(range(100)),
        max_tokens=60,
        sampling=SamplingParams(temperature=0),
        ignore_eos=True,
        context_policy=SHIFT,
    )
    answers = [
        [event.token for event in stream if isinstance(event, Token)]
        for stream in start(20).submit_parallel(request, 3)
    ]
    kept = [*range(SINKS), *range(100 - (CONTEXT * 3 // 4 - SINKS), 100)]
    assert answers == [shifting_run(kept, 60)] * 3


def test_calls_of_tools_belong_to_the_turn_that_asked_for_them() -> None:
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "told"},
        {"role": "user", "content": "two"},
    ]
    seen: list[list[str]] = []

    def render(messages: Any) -> list[int]:
        seen.append([message["content"] for message in messages])
        return [0] * 10 * len(messages)

    assert len(DropOldest(chat, render).prompt([0] * 60, 50, 10)) == 20
    assert {tuple(one) for one in seen} <= {("s", "one", "call", "result", "told", "two"), ("s", "two")}


def test_tiny_contexts_shift_too() -> None:
    for context in range(2, 12):
        tokens = list(range(context))
        shorter = Shift().answer(tokens, 0, context)
        assert shorter is not None
        assert 0 < len(shorter) < context
        assert shorter[-1] == tokens[-1]
        assert 0 < len(Shift().prompt(list(range(99)), context, 1)) < context
