from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.request
import engine.request as engine_request
from engine.api import (
    EngineState,
    Failed,
    Finished,
    GenerateRequest,
    LoadOptions,
    ModelInfo,
    PrefillProgress,
    SamplingParams,
    Started,
    StopReason,
    Token,
)
from engine.batch import KV_BLOCK, Batch
from engine.chat_template import PLAIN_CHAT_TEMPLATE
from engine.engine import Engine
from engine.errors import ContextFullError, DeviceError, ModelFileError, RealmError, RequestError
from engine.job import JobCancelled
from engine.stream import Stream
from tests.engine.fakes import (
    BOS,
    END,
    GREEDY,
    N_VOCAB,
    FakeBundle,
    FakeModel,
    FakeTokenizer,
    hashed_logits,
    loader_of,
    lone_run,
    scripted,
)
from tests.engine.generation import generate

WAIT = 20.0
Start = Callable[..., Engine]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fake.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def start(file: Path) -> Iterator[Start]:
    """start(bundle, ...) gives an engine that has loaded the first bundle; a model may stand for its bundle."""
    engines: list[Engine] = []

    def run(*bundles: FakeBundle | FakeModel) -> Engine:
        engine = Engine(loader_of(*(b if isinstance(b, FakeBundle) else FakeBundle(b) for b in bundles)))
        engines.append(engine)
        engine.load(file).result(WAIT)
        return engine

    yield run
    for started in engines:
        started.close()


def ask(*tokens: int, n: int | None = 10, **more: Any) -> GenerateRequest:
    more.setdefault("sampling", GREEDY)
    return GenerateRequest(prompt_tokens=list(tokens) or [1, 2, 3], max_tokens=n, **more)


def error_of(stream: Stream) -> RealmError:
    last = list(stream)[-1]
    assert isinstance(last, Failed)
    return last.error


def answer(stream: Stream) -> list[int]:
    return [event.token for event in stream if isinstance(event, Token)]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Gate:
    """Stops the model before step number `at` until `open` is called."""

    def __init__(self, at: int) -> None:
        self.reached, self._opened, self._at, self._step = threading.Event(), threading.Event(), at, 0

    def __call__(self, batch: Batch) -> None:
        self._step += 1
        if self._step == self._at:
            self.reached.set()
            assert self._opened.wait(WAIT)

    def wait(self) -> None:
        assert self.reached.wait(WAIT)

    def open(self) -> None:
        self._opened.set()


# -- one request


def test_an_answer_is_what_the_model_says(start: Start) -> None:
    result = generate(start(FakeModel()), ask(5, 6, 7, n=40, ignore_eos=True))
    assert result.tokens == lone_run([5, 6, 7], 40, ignore_eos=True)
    assert result.stop_reason is StopReason.LENGTH
    assert result.prompt_tokens == 3


def test_events_come_in_their_order_and_prefill_in_chunks(start: Start) -> None:
    events = list(start(FakeModel(max_rows=32)).submit(ask(*range(100), n=3, ignore_eos=True)))
    assert events[0] == Started(100, 64 * KV_BLOCK)
    assert events[1:5] == [PrefillProgress(n, 100) for n in (32, 64, 96, 100)]
    assert [type(event) for event in events[5:]] == [Token, Token, Token, Finished]


def test_the_text_is_whole_characters_and_ends_before_the_end_token(start: Start) -> None:
    stream = start(FakeModel(logits=scripted("né€".encode()))).submit(ask(BOS, n=None))
    events = [event for event in stream if isinstance(event, Token)]
    assert [event.text for event in events] == ["n", "", "é", "", "", "€", ""]
    assert events[-1].token == END


def test_an_end_token_ends_the_answer_unless_ignored(start: Start) -> None:
    engine = start(FakeModel(logits=scripted(b"ab")))
    ended = generate(engine, ask(BOS, n=6))
    assert (ended.text, ended.stop_reason) == ("ab", StopReason.EOS)
    ignored = generate(engine, ask(BOS, n=6, ignore_eos=True))
    assert (ignored.text, ignored.stop_reason) == ("ab<end><end><end><end>", StopReason.LENGTH)
    assert ignored.tokens == [*b"ab", END, END, END, END]


def test_a_stop_string_across_tokens_ends_the_answer_before_it(start: Start) -> None:
    engine = start(FakeModel(logits=scripted(b"one <two> three")))
    events = list(engine.submit(ask(BOS, n=None, stop=["<two>", "zebra"])))
    assert [event.text for event in events if isinstance(event, Token)] == [*"one ", "", "", "", "", ""]
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.text) == (StopReason.STOP, "")


def test_text_held_back_comes_with_the_end(start: Start) -> None:
    engine = start(FakeModel(logits=scripted(b"one <tw")))
    last = list(engine.submit(ask(BOS, n=None, stop=["<two>"])))[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.text) == (StopReason.EOS, "<tw")
    assert generate(engine, ask(BOS, n=6, stop=["<two>"])).text == "one <t"


def test_the_context_ends_an_answer(start: Start) -> None:
    engine = start(FakeBundle(FakeModel(), context_length=40))
    result = generate(engine, ask(*range(30), n=None, ignore_eos=True))
    assert result.stop_reason is StopReason.CONTEXT
    assert len(result.tokens) == 10
    assert (result.figures.context_used, result.figures.context_length) == (40, 40)


def test_the_next_turn_finds_the_last_one_in_the_cache(start: Start) -> None:
    model = FakeModel()
    engine = start(model)
    first = generate(engine, ask(*range(50), n=60, ignore_eos=True))
    before = len(model.batches)
    turn = [*range(50), *first.tokens, 7, 8, 9]
    second = generate(engine, ask(*turn, n=5, ignore_eos=True))
    assert second.figures.cached_tokens == 109 // KV_BLOCK * KV_BLOCK
    assert len(model.batches[before].tokens) == len(turn) - second.figures.cached_tokens
    assert second.tokens == lone_run(turn, 5, ignore_eos=True)


def test_figures_are_sane_and_live(start: Start) -> None:
    engine = start(FakeModel(before=lambda batch: time.sleep(0.002)))
    tokens = [e for e in engine.submit(ask(*range(50), n=20, ignore_eos=True)) if isinstance(e, Token)]
    assert [event.figures.generated_tokens for event in tokens] == list(range(1, 21))
    first, last = tokens[0].figures, tokens[-1].figures
    assert first.decode_tokens_per_s == 0
    assert first.time_to_first_token_s >= first.prefill_s >= 0.002
    assert last.decode_s >= 19 * 0.002
    assert last.decode_tokens_per_s == pytest.approx(19 / last.decode_s)
    assert last.prefill_tokens_per_s == pytest.approx(50 / last.prefill_s)
    assert last.decode_gb_per_s == pytest.approx(last.decode_tokens_per_s * 1e6 / 1e9)
    assert last.decode_bandwidth_share == pytest.approx(last.decode_gb_per_s / 1.0)
    assert last.context_used == 70
    assert engine.status().figures is not None


# -- several requests


def test_requests_run_together_and_answer_as_they_would_alone(start: Start) -> None:
    gate = Gate(at=1)
    model = FakeModel(before=gate)
    engine = start(model)
    streams = [engine.submit(ask(n, 2, 3, n=30, ignore_eos=True)) for n in range(5)]
    gate.wait()
    gate.open()
    for n, stream in enumerate(streams):
        assert answer(stream) == lone_run([n, 2, 3], 30, ignore_eos=True)
    assert max(len(batch.logit_rows) for batch in model.batches) == 5
    assert len(model.batches) < 40  # alone they would take 150


def test_a_running_answer_gets_a_token_in_every_step_of_a_long_prefill(start: Start) -> None:
    gate = Gate(at=5)
    model = FakeModel(max_rows=16, before=gate)
    engine = start(model)
    running = engine.submit(ask(1, n=60, ignore_eos=True))
    gate.wait()
    long = engine.submit(ask(*range(200), n=1))
    gate.open()
    assert answer(running) == lone_run([1], 60, ignore_eos=True)
    assert answer(long) == lone_run(list(range(200)), 1)
    mixed = [batch for batch in model.batches if len(batch.tokens) == 16]
    assert len(mixed) >= 200 // 16
    assert all(batch.logit_rows[0] == 0 for batch in mixed)


def test_more_than_the_cache_holds_takes_turns(start: Start) -> None:
    model = FakeModel(n_blocks=6)
    engine = start(model)
    streams = [engine.submit(ask(*range(n, n + 60), n=90, ignore_eos=True)) for n in range(4)]
    for n, stream in enumerate(streams):
        assert answer(stream) == lone_run(list(range(n, n + 60)), 90, ignore_eos=True)


def test_cancel_takes_effect_within_one_step(start: Start) -> None:
    gate = Gate(at=4)
    model = FakeModel(before=gate)
    engine = start(model)
    stream = engine.submit(ask(1, n=None, ignore_eos=True))
    gate.wait()
    stream.cancel()
    gate.open()
    events = list(stream)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason is StopReason.CANCELLED
    assert len(model.batches) == 4
    assert generate(engine, ask(2, n=3)).tokens == lone_run([2], 3)


def test_cancelling_a_waiting_request(start: Start) -> None:
    gate = Gate(at=1)
    engine = start(FakeModel(n_blocks=4, before=gate))
    running = engine.submit(ask(*range(100), n=20, ignore_eos=True))
    gate.wait()
    waiting = engine.submit(ask(*range(1, 101), n=20))
    waiting.cancel()
    assert [type(event) for event in waiting] == [Finished]
    gate.open()
    assert answer(running) == lone_run(list(range(100)), 20, ignore_eos=True)


# -- what is wrong with a request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (GenerateRequest(), "exactly one of"),
        (GenerateRequest(prompt="a", prompt_tokens=[1]), "prompt and prompt_tokens"),
        (ask(1, n=0), "max_tokens is 0"),
        (ask(1, n=-3), "max_tokens is -3"),
        (ask(1, n=True), "max_tokens is True"),
        (ask(1, N_VOCAB), rf"prompt_tokens\[1\] is {N_VOCAB}"),
        (ask(-1), r"prompt_tokens\[0\] is -1"),
        (GenerateRequest(prompt_tokens=[1.5]), r"prompt_tokens\[0\] is 1.5"),  # type: ignore[list-item]
        (ask(1, stop="abc"), "stop is 'abc'"),
        (ask(1, stop=[""]), "stop is"),
        (ask(1, sampling=SamplingParams(top_p=3)), "top_p is 3"),
        (GenerateRequest(messages=[]), "at least one message"),
        (GenerateRequest(messages=["hello"]), "Message 1"),  # type: ignore[list-item]
        (GenerateRequest(messages=[{"role": "user"}, {"content": "x"}]), "Message 2"),
        (GenerateRequest(prompt=7), "prompt is of type int"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_request_is_refused_in_its_own_stream(start: Start, request_: GenerateRequest, words: str) -> None:
    engine = start(FakeModel())
    events = list(engine.submit(request_))
    assert len(events) == 1
    assert isinstance(events[0], Failed)
    assert isinstance(events[0].error, RequestError)
    with pytest.raises(RequestError, match=words):
        raise events[0].error
    assert generate(engine, ask(1, n=2)).tokens


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(start: Start) -> None:
    engine = start(FakeBundle(FakeModel(), context_length=50))
    error = error_of(engine.submit(ask(*range(50))))
    assert isinstance(error, ContextFullError)
    assert "has 50 tokens" in error.message
    assert "holds 50" in error.message
    assert len(generate(engine, ask(*range(49), n=5)).tokens) == 1


def test_an_empty_prompt_begins_with_bos_where_there_is_one(start: Start) -> None:
    with_bos = start(FakeModel())
    assert generate(with_bos, GenerateRequest(prompt="", sampling=GREEDY, max_tokens=4)).tokens == lone_run([BOS], 4)
    tokenizer = FakeTokenizer()
    tokenizer.bos = None
    without = start(FakeBundle(FakeModel(), tokenizer))
    assert "empty" in error_of(without.submit(GenerateRequest(prompt=""))).message
    assert "empty" in error_of(without.submit(GenerateRequest(prompt_tokens=[]))).message


def test_messages_go_through_the_template(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(template: Any, tokenizer: Any, messages: Any, *, answer_so_far: str) -> list[int]:
        assert template == "a template"
        return [BOS, *messages[0]["content"].encode()]

    monkeypatch.setattr(engine.request, "render_chat_tokens", render)
    running = start(FakeModel())
    messages = [{"role": "user", "content": "hi"}]
    result = generate(running, GenerateRequest(messages=messages, sampling=GREEDY, max_tokens=3))
    assert result.tokens == lone_run([BOS, *b"hi"], 3)
    assert running.count_tokens(messages).result(WAIT) == 3
    assert running.count_tokens(prompt="four").result(WAIT) == 4


# -- what goes wrong on the way


def test_an_error_in_one_request_leaves_the_others(start: Start) -> None:
    def logits(history: tuple[int, ...]) -> Any:
        out = scripted(b"a" * 30)(history)
        if history[0] == 13 and len(history) > 10:
            out[5] = float("nan")
        return out

    gate = Gate(at=1)
    engine = start(FakeModel(logits=logits, before=gate))
    good, bad = engine.submit(ask(1, BOS, n=25)), engine.submit(ask(13, BOS, n=25))
    gate.wait()
    gate.open()
    error = error_of(bad)
    assert isinstance(error, DeviceError)
    assert "invalid numbers" in error.message
    assert answer(good) == [*b"a" * 25]
    assert engine.status().state is EngineState.READY


def test_what_led_to_invalid_numbers_is_not_kept_in_the_cache(start: Start) -> None:
    prompt = [*range(KV_BLOCK + 5)]

    def logits(history: tuple[int, ...]) -> Any:
        out = hashed_logits(history)
        return out if healthy else out * np.nan

    healthy = False
    engine = start(FakeModel(logits=logits))
    assert isinstance(error_of(engine.submit(ask(*prompt))), DeviceError)
    healthy = True
    assert generate(engine, ask(*prompt)).figures.cached_tokens == 0
    assert generate(engine, ask(*prompt)).figures.cached_tokens == KV_BLOCK


def test_a_lost_device_fails_what_runs_and_says_so(start: Start, file: Path) -> None:
    def lose(batch: Batch) -> None:
        if len(model.batches) == 3:
            raise DeviceError("The device went away.", "Plug it in.")

    model = FakeModel(before=lose)
    engine = start(model, FakeModel())
    assert error_of(engine.submit(ask(1))).message == "The device went away."
    wait_until(lambda: engine.status().state is EngineState.FAILED)
    status = engine.status()
    assert status.model is None
    assert status.error is not None
    assert (status.error.message, status.error.hint) == ("The device went away.", "Plug it in.")
    assert model.closed
    assert "The device went away." in error_of(engine.submit(ask(1))).message
    engine.load(file).result(WAIT)
    assert generate(engine, ask(1, n=3)).tokens == lone_run([1], 3)
    assert engine.status().error is None


def test_a_mistake_in_a_step_fails_its_requests_and_keeps_the_model(start: Start) -> None:
    def fail(batch: Batch) -> None:
        if batch.tokens[0] == 66:
            raise IndexError("out of reach")

    engine = start(FakeModel(before=fail))
    assert "out of reach" in error_of(engine.submit(ask(66))).message
    assert generate(engine, ask(1, n=3)).tokens == lone_run([1], 3)


# -- models


def test_loading_reports_progress_and_the_model(file: Path) -> None:
    gate = threading.Event()
    seen: list[float] = []

    def load(path: Path, options: LoadOptions, progress: Any, cancelled: Any) -> FakeBundle:
        assert path == file
        assert options == LoadOptions(device="numpy")
        for stage, fraction in (("reading", 1.0), ("weights", 0.5), ("compiling", 0.5), ("measuring", 1.0)):
            progress(stage, fraction, "detail")
            now = job.progress()
            assert now is not None
            assert now == engine.status().progress
            seen.append(now.fraction)
        assert engine.status().state is EngineState.LOADING
        assert gate.wait(WAIT)
        return FakeBundle()

    with Engine(load) as engine:
        assert engine.status().state is EngineState.EMPTY
        job = engine.load(file, LoadOptions(device="numpy"))
        gate.set()
        info = job.result(WAIT)
        assert isinstance(info, ModelInfo)
        assert info.context_length == 64 * KV_BLOCK  # no more than the KV cache holds
        assert engine.status().model == info
        assert engine.status().state is EngineState.READY
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert engine.status().state is EngineState.CLOSED


def test_switching_ends_what_runs_and_frees_the_old_model_first(start: Start, file: Path) -> None:
    gate = Gate(at=3)
    old, new = FakeModel(before=gate), FakeModel()
    engine = start(old, new)
    running = engine.submit(ask(1, n=None, ignore_eos=True))
    gate.wait()
    job = engine.load(file)
    after = engine.submit(ask(2, n=3))
    gate.open()
    job.result(WAIT)
    assert "Another model" in error_of(running).message
    assert old.closed
    assert answer(after) == lone_run([2], 3)
    assert new.batches


def test_a_failed_load_leaves_the_engine_usable(file: Path, tmp_path: Path) -> None:
    outcomes: list[Any] = [ModelFileError("The file is damaged."), ValueError("bug"), MemoryError(), FakeBundle()]

    def load(path: Path, options: LoadOptions, progress: Any, cancelled: Any) -> FakeBundle:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with Engine(load) as engine:
        assert "No model is loaded" in error_of(engine.submit(ask(1))).message
        with pytest.raises(ModelFileError, match="no file"):
            engine.load(tmp_path / "absent.gguf").result(WAIT)
        for words in ("damaged", "ValueError: bug", "not enough memory"):
            with pytest.raises(RealmError, match=words):
                engine.load(file).result(WAIT)
            status = engine.status()
            assert status.state is EngineState.FAILED
            assert status.error is not None
            assert words in status.error.message
        engine.load(file).result(WAIT)
        assert generate(engine, ask(1, n=2)).tokens == lone_run([1], 2)


def test_a_path_without_a_file_keeps_the_model(start: Start, tmp_path: Path) -> None:
    engine = start(FakeModel())
    for path in (tmp_path / "absent.gguf", "no\0name"):
        with pytest.raises(ModelFileError, match="no file"):
            engine.load(path).result(WAIT)
    assert generate(engine, ask(1, n=2)).tokens


def test_a_load_can_be_cancelled(file: Path) -> None:
    begun = threading.Event()

    def load(path: Path, options: LoadOptions, progress: Any, cancelled: Callable[[], bool]) -> FakeBundle:
        begun.set()
        wait_until(cancelled)
        raise InterruptedError

    with Engine(load) as engine:
        job = engine.load(file)
        assert begun.wait(WAIT)
        job.cancel()
        with pytest.raises(JobCancelled):
            job.result(WAIT)
        assert job.cancelled()
        assert engine.status().state is EngineState.EMPTY


def test_unload_frees_the_model(start: Start) -> None:
    model = FakeModel()
    engine = start(model)
    engine.unload().result(WAIT)
    assert model.closed
    assert engine.status().state is EngineState.EMPTY
    assert "No model" in error_of(engine.submit(ask(1))).message


def test_a_model_without_template_chats_in_the_plain_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def render(template: Any, tokenizer: Any, messages: Any, *, answer_so_far: str) -> list[int]:
        seen.append(template)
        return [BOS]

    monkeypatch.setattr(engine.request, "render_chat_tokens", render)
    monkeypatch.setattr("engine.serving.ChatTemplate", lambda source: ("plain", source))
    running = start(FakeBundle(template=None))
    generate(running, GenerateRequest(messages=[{"role": "user", "content": "hi"}], max_tokens=1))
    assert seen == [("plain", PLAIN_CHAT_TEMPLATE)]


def test_the_plain_template_in_place_of_a_model_s_own(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def render(template: Any, tokenizer: Any, messages: Any, *, answer_so_far: str) -> list[int]:
        seen.append(template)
        return [BOS]

    monkeypatch.setattr(engine.request, "render_chat_tokens", render)
    monkeypatch.setattr("engine.serving.ChatTemplate", lambda source: ("plain", source))
    running = start(FakeModel())
    for plain in (False, True):
        messages = [{"role": "user", "content": "hi"}]
        generate(running, GenerateRequest(messages=messages, max_tokens=1, plain_template=plain))
    assert seen == ["a template", ("plain", PLAIN_CHAT_TEMPLATE)]


def test_rows_of_the_output_that_are_no_tokens_are_never_drawn(start: Start) -> None:
    tokenizer = FakeTokenizer()
    tokenizer.n_vocab = 40
    engine = start(FakeBundle(FakeModel(), tokenizer))
    sampling = SamplingParams(temperature=5, top_k=0, top_p=1, min_p=0, seed=1)
    assert max(generate(engine, ask(1, n=100, sampling=sampling)).tokens) < 40
    assert "prompt_tokens[0] is 40" in error_of(engine.submit(ask(40))).message


# -- the rest


def test_instruments_run_between_steps_and_may_use_the_whole_cache(start: Start) -> None:
    gate = Gate(at=40)
    model = FakeModel(before=gate)
    engine = start(model)
    stream = engine.submit(ask(*range(50), n=80, ignore_eos=True))
    gate.wait()

    def ruin(model: Any, tokenizer: Any) -> str:
        model._cache[:] = -3
        return threading.current_thread().name

    job = engine.call(ruin)
    gate.open()
    assert job.result(WAIT) == "engine"
    assert answer(stream) == lone_run(list(range(50)), 80, ignore_eos=True)
    assert generate(engine, ask(*range(50))).figures.cached_tokens == KV_BLOCK  # and it is cached anew
    assert engine.call(lambda model, tokenizer: tokenizer.bos, uses_kv=False).result(WAIT) == BOS


def test_an_error_in_a_call_is_its_result(start: Start) -> None:
    def fail(model: Any, tokenizer: Any) -> None:
        raise KeyError("mine")

    engine = start(FakeModel())
    with pytest.raises(KeyError, match="mine"):
        engine.call(fail).result(WAIT)
    assert generate(engine, ask(1, n=2)).tokens


def test_status_counts_requests(start: Start) -> None:
    gate = Gate(at=1)
    engine = start(FakeModel(n_blocks=4, before=gate))
    streams = [engine.submit(ask(*range(n, n + 100), n=3)) for n in range(3)]
    gate.wait()
    status = engine.status()
    assert status.state is EngineState.GENERATING
    assert status.active_requests + status.queued_requests == 3
    assert status.active_requests == 1
    gate.open()
    for stream in streams:
        list(stream)
    wait_until(lambda: engine.status().state is EngineState.READY)
    assert (engine.status().active_requests, engine.status().queued_requests) == (0, 0)


def test_closing_ends_everything(start: Start) -> None:
    gate = Gate(at=3)
    model = FakeModel(before=gate)
    engine = start(model)
    running = engine.submit(ask(1, n=None, ignore_eos=True))
    gate.wait()
    waiting = engine.call(lambda model, tokenizer: None)
    engine.close(timeout=0.01)
    late = engine.submit(ask(1))
    gate.open()
    engine.close()
    assert not engine._thread.is_alive()
    assert model.closed
    for stream in (running, late):
        assert "closed" in error_of(stream).message
    for job in (waiting, engine.unload()):
        with pytest.raises(RequestError, match="closed"):
            job.result(WAIT)


def test_an_interrupted_wait_cancels_its_request(start: Start) -> None:
    engine = start(FakeModel())

    def interrupt(event: Any) -> None:
        if isinstance(event, Token):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(engine, ask(1, n=None, ignore_eos=True), interrupt)
    wait_until(lambda: engine.status().active_requests == 0)


def test_many_threads_at_once(start: Start) -> None:
    engine = start(FakeModel(n_blocks=24))
    results: dict[int, list[int]] = {}

    def work(n: int) -> None:
        request = replace(ask(*range(n, n + 40), n=30, ignore_eos=True), sampling=SamplingParams(seed=n))
        results[n] = generate(engine, request).tokens

    threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for n in range(8):
        assert results[n] == lone_run(list(range(n, n + 40)), 30, SamplingParams(seed=n), ignore_eos=True)


def test_the_engine_adds_little_to_a_step(start: Start) -> None:
    """The median time between two tokens on a model that does nothing: host work of a decode step."""

    class Idle(FakeModel):
        out = np.zeros((1, N_VOCAB), np.float32)

        def __init__(self) -> None:
            super().__init__(n_blocks=300)
            self.times: list[float] = []

        def forward(self, batch: Batch) -> Any:
            self.times.append(time.perf_counter())
            return self.out

    model = Idle()
    generate(start(model), ask(1, n=2000))
    gaps = np.diff(model.times)
    print(f"median {np.median(gaps) * 1e6:.0f} us, best {gaps.min() * 1e6:.0f} us")
    assert np.median(gaps) < 300e-6


def test_log_probabilities_are_those_of_the_raw_logits(start: Start) -> None:
    engine = start(FakeModel())
    request = ask(1, 2, 3, n=3, logprobs=4, sampling=SamplingParams(temperature=0, logit_bias={7: 100.0}))
    tokens = [event for event in engine.submit(request) if isinstance(event, Token)]
    plain = [event for event in engine.submit(ask(n=3)) if isinstance(event, Token)]
    history = [1, 2, 3]
    for event in tokens:
        values = hashed_logits(tuple(history)).astype(np.float64)
        expected = values - np.log(np.exp(values).sum())
        assert event.token == 7  # through the bias, which the log probabilities do not see
        assert event.logprob == pytest.approx(expected[7], abs=1e-5)
        order = np.argsort(-expected)[:4]
        assert [other.token for other in event.alternatives] == order.tolist()
        assert [other.logprob for other in event.alternatives] == pytest.approx(expected[order], abs=1e-5)
        history.append(event.token)
    assert all(event.logprob is None and not event.alternatives for event in plain)


@pytest.mark.parametrize("bad", [-1, True, 1.5, 10**6])
def test_an_invalid_number_of_alternatives_is_refused(start: Start, bad: Any) -> None:
    assert "logprobs" in str(error_of(start(FakeModel()).submit(ask(logprobs=bad))))


# -- fairness, priorities, parallel answers


def first_tokens(model: FakeModel, engine: Engine, requests: list[GenerateRequest], gate: Gate) -> list[int]:
    """Submits the first request, the others once a step of it has begun; the order in which first tokens come."""
    submitted, streams = [time.perf_counter()], [engine.submit(requests[0])]
    gate.wait()
    for request in requests[1:]:
        submitted.append(time.perf_counter())
        streams.append(engine.submit(request))
    gate.open()
    ends = [list(stream)[-1] for stream in streams]
    waits = [end.figures.time_to_first_token_s for end in ends if isinstance(end, Finished)]
    times = [at + wait for at, wait in zip(submitted, waits, strict=True)]
    return sorted(range(len(times)), key=times.__getitem__)


def test_a_short_request_overtakes_a_long_prompt(start: Start) -> None:
    gate = Gate(at=2)
    model = FakeModel(n_blocks=128, max_rows=64, before=gate)
    long, short = ask(*[1, 2] * 1000, n=3), ask(7, 8, 9, n=3)
    assert first_tokens(model, start(model), [long, short], gate) == [1, 0]


def test_short_requests_do_not_starve_a_long_prompt(start: Start) -> None:
    """One after the other would keep it waiting for ever; it waits for as many of their rows as it has itself."""
    model = FakeModel(n_blocks=400, max_rows=10, before=lambda batch: time.sleep(0.001))
    engine = start(model)
    long = engine.submit(ask(*[1, 2] * 100, n=1))
    overtook = 0
    while not long.ended:
        streams = [engine.submit(ask(*[n, overtook % 250, 3] * 7, n=1)) for n in range(4)]
        assert all(answer(stream) for stream in streams)
        overtook += 4
    assert 4 <= overtook <= 200 // 21 + 2 * 4


def test_the_higher_priority_goes_first(start: Start) -> None:
    gate = Gate(at=2)

    def slow(batch: Batch) -> None:
        gate(batch)
        time.sleep(0.003)

    model = FakeModel(n_blocks=64, max_rows=16, before=slow)
    requests = [ask(*[n, 2] * 40, n=2, priority=priority) for n, priority in enumerate((0, 0, -1, 3, 2))]
    assert first_tokens(model, start(model), requests, gate) == [3, 4, 0, 1, 2]


def test_a_higher_priority_takes_the_place_of_a_lower_one(start: Start) -> None:
    gate = Gate(at=3)
    model = FakeModel(n_blocks=4, before=gate)
    engine = start(model)
    low = engine.submit(ask(*range(60), n=60, ignore_eos=True))
    gate.wait()
    high = engine.submit(ask(*range(9, 99), n=5, ignore_eos=True, priority=1))
    gate.open()
    ends = [list(stream)[-1] for stream in (high, low)]
    assert isinstance(ends[0], Finished)
    assert isinstance(ends[1], Finished)
    assert ends[0].figures.decode_s < ends[1].figures.decode_s
    assert engine.status().active_requests == 0


def test_parallel_answers_share_one_prompt(start: Start) -> None:
    model = FakeModel()
    engine = start(model)
    prompt = list(range(100))
    request = ask(*prompt, n=30, sampling=SamplingParams(seed=5), ignore_eos=True)
    answers = [answer(stream) for stream in engine.submit_parallel(request, 4)]
    assert sum(len(batch.tokens) for batch in model.batches) == 100 + 4 * 29
    assert len({tuple(one) for one in answers}) == 4
    assert answers[0] == lone_run(prompt, 30, SamplingParams(seed=5), ignore_eos=True)
    for number, tokens in enumerate(answers):
        sampling = engine_request.parallel_request(request, number).sampling
        assert tokens == lone_run(prompt, 30, sampling, ignore_eos=True)


def test_parallel_answers_go_on_when_the_first_is_cancelled(start: Start) -> None:
    gate = Gate(at=2)
    model = FakeModel(max_rows=16, before=gate)
    engine = start(model)
    streams = engine.submit_parallel(ask(*range(100), n=5, ignore_eos=True), 3)
    gate.wait()
    streams[0].cancel()
    gate.open()
    assert answer(streams[0]) == []
    assert [answer(stream) for stream in streams[1:]] == [lone_run(list(range(100)), 5, ignore_eos=True)] * 2


def test_what_is_wrong_with_parallel_answers_is_said_in_each(start: Start) -> None:
    engine = start(FakeModel())
    assert {str(error_of(stream)) for stream in engine.submit_parallel(ask(1, n=0), 3)} == {
        "max_tokens is 0, but it has to be a whole number from 1 up. Or leave it out."
    }
    with pytest.raises(RequestError, match="0 answers"):
        engine.submit_parallel(ask(1), 0)


def test_an_answer_that_lost_its_place_does_not_compute_its_tokens_again(start: Start) -> None:
    model = FakeModel(n_blocks=6)
    engine = start(model)
    streams = [engine.submit(ask(*range(n, n + 60), n=90, ignore_eos=True)) for n in range(4)]
    for n, stream in enumerate(streams):
        assert answer(stream) == lone_run(list(range(n, n + 60)), 90, ignore_eos=True)
    assert sum(len(batch.tokens) for batch in model.batches) == 4 * (60 + 89)
