"""Adapters in an engine that serves: every answer equals that of a lone run with the same adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api import AdapterUse, Failed, Finished, GenerateRequest, LoadOptions, SamplingParams, Token
from engine.engine import Engine
from engine.errors import DeviceError, RealmError, RequestError
from engine.stream import Stream
from tests.adapters.writer import MODULES, write_gguf_adapter, write_peft

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module", params=["numpy", "opencl", "opencl=1,numpy"])
def engine(request: pytest.FixtureRequest, fixtures_dir: Path) -> Iterator[Engine]:
    with Engine() as running:
        options = LoadOptions(device=request.param, context_length=256)
        running.load(fixtures_dir / "tiny_models" / "llama.gguf", options).result(60)
        yield running


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_peft(folder / str(seed), MODULES, seed=seed, rank=3 + seed, size=2.0) for seed in range(3)]


def submit(engine: Engine, prompt: list[int], uses: tuple[AdapterUse, ...], count: int) -> Stream:
    return engine.submit(
        GenerateRequest(prompt_tokens=prompt, adapters=uses, max_tokens=count, ignore_eos=True, sampling=GREEDY)
    )


def tokens_of(stream: Stream) -> list[int]:
    tokens = []
    for event in stream:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Token):
            tokens.append(event.token)
    return tokens


def lone(engine: Engine, prompt: list[int], uses: tuple[AdapterUse, ...], count: int) -> list[int]:
    return tokens_of(submit(engine, prompt, uses, count))


def uses_of(adapters: list[Path], strengths: tuple[float, ...]) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(path, strength) for path, strength in zip(adapters, strengths, strict=False) if strength)


STRENGTHS = st.tuples(*[st.sampled_from([0.0, 0.0, 0.5, 1.0]) for _ in range(3)])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets=st.lists(STRENGTHS, min_size=2, max_size=5), start=st.integers(1, 40))
def test_answers_in_one_batch_are_those_of_lone_runs(
    engine: Engine, adapters: list[Path], sets: list[tuple[float, ...]], start: int
) -> None:
    """The same prompt for all: nothing may be found in the cache that other adapters computed."""
    prompt = [1, *range(start, start + 40)]
    streams = [submit(engine, prompt, uses_of(adapters, strengths), 6) for strengths in sets]
    together = [tokens_of(stream) for stream in streams]
    assert together == [lone(engine, prompt, uses_of(adapters, strengths), 6) for strengths in sets]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(STRENGTHS, min_size=1, max_size=3), start=st.integers(1, 40))
def test_after_a_change_the_answer_goes_on_as_a_lone_run_from_there(
    engine: Engine, adapters: list[Path], changes: list[tuple[float, ...]], start: int
) -> None:
    prompt = [1, *range(start, start + 33)]
    beside = submit(engine, prompt, (), 180)
    stream = submit(engine, prompt, uses_of(adapters, (1.0, 0.0, 0.0)), 180)
    text = list(prompt)

    def read(count: int) -> None:
        """Until the text has so many tokens more."""
        count += len(text)
        while len(text) < count and not stream.done:
            text.extend(event.token for event in stream.wait(30) if isinstance(event, Token))

    for strengths in changes:
        read(2)
        earliest = len(text)
        try:
            engine.set_adapters(stream, uses_of(adapters, strengths)).result(30)
        except RequestError:  # it has ended: a machine that is busy elsewhere woke this thread too late
            break
        text += [event.token for event in stream.poll() if isinstance(event, Token)]
        latest = len(text)
        read(4)
        # some of these tokens may be from before the change, and from some place on all are from after it
        assert any(
            text[at : at + 4] == lone(engine, text[:at], uses_of(adapters, strengths), len(text[at : at + 4]))
            for at in range(latest, earliest - 1, -1)
        )
    stream.cancel()
    beside.cancel()
    for rest in (stream, beside):
        assert isinstance(list(rest)[-1], Finished)


def test_strength_0_and_a_set_in_another_order_share_what_was_computed(engine: Engine, adapters: list[Path]) -> None:
    prompt = [1, *range(200, 280)]
    first, second = (AdapterUse(path, 0.7) for path in adapters[:2])
    off = AdapterUse(adapters[0], 0.0)
    figures = []
    for uses in ((), (off,), (first, second), (second, first)):
        stream = submit(engine, prompt, uses, 2)
        figures.append(next(event for event in stream if isinstance(event, Finished)).figures)
    assert [f.cached_tokens > 0 for f in figures] == [False, True, False, True]


def test_what_is_wrong_leaves_a_running_answer_as_it_was(engine: Engine, adapters: list[Path], tmp_path: Path) -> None:
    prompt = [1, 7, 9]
    stream = submit(engine, prompt, (AdapterUse(adapters[1]),), 120)
    wide = write_peft(tmp_path / "wide", {"model.layers.0.self_attn.q_proj": (256, 300)})
    for uses, word in (
        ((AdapterUse(wide),), "another model"),
        ((AdapterUse(adapters[0], float("inf")),), "strength"),
        ((AdapterUse(tmp_path / "none"),), "no adapter"),
    ):
        with pytest.raises(RealmError, match=word):
            engine.set_adapters(stream, uses).result(30)
    assert tokens_of(stream) == lone(engine, prompt, (AdapterUse(adapters[1]),), 120)
    with pytest.raises(RequestError, match="has ended"):
        engine.set_adapters(stream, ()).result(30)


def test_an_adapter_is_checked_with_and_without_a_model(engine: Engine, adapters: list[Path], tmp_path: Path) -> None:
    info = engine.check_adapter(adapters[0]).result(30)
    assert (info.rank, info.kind, info.n_matrices) == (3, "peft", 4)
    deep = write_peft(tmp_path / "deep", {"model.layers.2.self_attn.q_proj": (256, 256)})
    with pytest.raises(RealmError, match="layers 0 to 1"):
        engine.check_adapter(deep).result(30)
    with Engine() as empty:
        assert empty.check_adapter(deep).result(30).targets == ("attn_q",)


def test_an_adapter_whose_file_changed_is_read_again(engine: Engine, adapters: list[Path], tmp_path: Path) -> None:
    prompt = [1, 30, 31, 32]
    folder = write_peft(tmp_path / "one", MODULES, seed=0, rank=3, size=2.0)
    before = lone(engine, prompt, (AdapterUse(folder),), 8)
    assert before == lone(engine, prompt, (AdapterUse(adapters[0]),), 8)
    write_peft(folder, MODULES, seed=1, rank=4, size=2.0)
    assert lone(engine, prompt, (AdapterUse(folder),), 8) == lone(engine, prompt, (AdapterUse(adapters[1]),), 8)
    assert before != lone(engine, prompt, (AdapterUse(folder),), 8)


def test_an_adapter_that_drives_a_model_out_of_its_numbers_is_told_as_the_cause(engine: Engine, tmp_path: Path) -> None:
    name = "blk.1.ffn_down.weight.lora_"
    halves = {f"{name}a": np.full((2, 256), 1e30, np.float32), f"{name}b": np.full((256, 2), 1e30, np.float32)}
    huge = write_gguf_adapter(tmp_path / "huge.gguf", "llama", halves)
    with pytest.raises(DeviceError, match="invalid numbers") as caught:
        tokens_of(submit(engine, [1, 2, 3], (AdapterUse(huge, 1.0),), 4))
    assert "without them" in caught.value.hint
    assert len(tokens_of(submit(engine, [1, 2, 3], (), 4))) == 4
