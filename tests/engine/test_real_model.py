"""The starter model through the whole engine, against the reference's greedy continuations."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.api import Finished, GenerateRequest, LoadOptions, SamplingParams
from engine.engine import Engine
from engine.stream import Stream
from tests.engine.generation import generate
from tests.engine.test_engine import answer

NEAR_TIE = 0.3
"""A step whose two best logits are nearer than this may flip by rounding of the activations alone."""

STRETCH = 16
"""Tokens asked for at a time: what follows a step that differs is thrown away."""


@pytest.fixture(scope="module")
def reference(fixtures_dir: Path) -> dict[str, Any]:
    return json.loads((fixtures_dir / "real_models" / "smollm2-135m-q4_1.json").read_text())


@pytest.fixture(scope="module", params=["numpy", "opencl"])
def running(request: pytest.FixtureRequest, starter_model: Path) -> Iterator[Engine]:
    with Engine() as engine:
        engine.load(starter_model, LoadOptions(device=request.param, context_length=512)).result(120)
        yield engine


def submit(engine: Engine, case: dict[str, Any], start: int) -> Stream:
    """Goes on from the reference's first `start` tokens for a stretch of its continuation."""
    return engine.submit(
        GenerateRequest(
            prompt_tokens=case["prompt_ids"] + case["greedy_ids"][:start],
            max_tokens=min(STRETCH, len(case["greedy_ids"]) - start),
            sampling=SamplingParams(temperature=0),
            ignore_eos=True,
        )
    )


def test_greedy_answers_follow_the_reference(running: Engine, reference: dict[str, Any]) -> None:
    """All prompts run batched. Where one leaves the reference's path, which only a near-tie or the exact top token
    excuses, it is put back onto it."""
    info = running.status().model
    assert info is not None
    cases = reference["cases"][: 1 if info.device.id == "numpy" else None]
    streams = {index: (0, submit(running, case, 0)) for index, case in enumerate(cases)}
    wrong: list[str] = []
    while streams:
        again = {}
        for index, (start, stream) in streams.items():
            case, tokens = cases[index], answer(stream)
            step = start
            for token in tokens:
                step += 1
                if token != case["greedy_ids"][step - 1]:
                    if token != case["exact_top1"][step - 1] and case["margin"][step - 1] >= NEAR_TIE:
                        wrong.append(f"{case['id']} step {step - 1}: {token}, margin {case['margin'][step - 1]}")
                    break
            assert step > start
            if step < len(case["greedy_ids"]):
                again[index] = (step, submit(running, case, step))
        streams = again
    assert not wrong
    assert running.status().active_requests == 0


def test_other_threads_get_on_during_a_step(running: Engine) -> None:
    """The window's thread is one of them: a step that keeps Python's lock holds it up."""
    info = running.status().model
    assert info is not None
    if info.device.id == "numpy":
        pytest.skip("its steps are many short calls")
    stream = running.submit(GenerateRequest(prompt_tokens=[*range(300, 780)], max_tokens=1))
    begin, turns = time.perf_counter(), 0
    while not any(isinstance(event, Finished) for event in stream.poll()):
        time.sleep(0.001)
        turns += 1
    assert turns > 100 * (time.perf_counter() - begin)


def test_a_seeded_answer_is_the_same_again(running: Engine) -> None:
    request = GenerateRequest(prompt="Once upon a time", max_tokens=8, sampling=SamplingParams(seed=11))
    first, second = generate(running, request), generate(running, request)
    assert first.tokens == second.tokens
    assert first.text == second.text
    assert first.text


def test_a_chat_is_answered_and_its_next_turn_reuses_the_cache(running: Engine) -> None:
    messages: list[dict[str, str]] = [
        {"role": "system", "content": "You are a patient teacher who explains things in short and simple sentences."},
        {"role": "user", "content": "What is the capital of France? Answer in one short sentence."},
    ]
    greedy = SamplingParams(temperature=0)
    first = generate(running, GenerateRequest(messages=messages, max_tokens=16, sampling=greedy))
    assert "Paris" in first.text
    assert "<|im_" not in first.text
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
    second = generate(running, GenerateRequest(messages=messages, max_tokens=16, sampling=greedy))
    assert second.figures.cached_tokens >= 32
    assert "Rome" in second.text
    assert second.figures.decode_tokens_per_s > 0
    assert running.count_tokens(messages).result(10) == second.prompt_tokens
