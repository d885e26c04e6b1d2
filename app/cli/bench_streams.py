"""`realm bench --streams`: many requests at once, and what they cost each other."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.models import loaded_engine, wait_for
from app.cli.options import at_least
from app.cli.stream_options import session_path
from app.cli.terminal import ProgressBar, printable, write_json
from engine.api import Failed, Figures, Finished, GenerateRequest, ModelInfo, PrefillProgress, SamplingParams, Token
from engine.measure import random_tokens

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.stream import Stream

PROMPT_TOKENS = 16
LONG_PROMPT = 2000
CHAT_TOKENS = 4000
TURNS = 5

_GREEDY = SamplingParams(temperature=0)


def add_stream_measurement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--streams",
        "--parallel",
        type=at_least(1),
        metavar="N",
        help="measure N concurrent answers beside one instead, a short request behind a long prefill, cancelling, and "
        "reopening a long chat from its session",
    )
    parser.add_argument(
        "--session", metavar="FILE", help="measure reopening a long chat from its session instead, kept in FILE"
    )


def run_streams(args: argparse.Namespace) -> int:
    answer = measure_streams(args.model, args.device, args.streams, args.decode_tokens, args.seed)
    if args.json:
        write_json(answer)
    else:
        print(printable(text_of(answer)))
    return 0


def run_session(args: argparse.Namespace) -> int:
    path = session_path({"session": args.session})
    bar = ProgressBar("session")
    with loaded_engine(args.model, args.device, CHAT_TOKENS + 128, kv_type=args.kv_type) as (engine, info):
        ends = wait_for(engine.call(lambda _, t: frozenset(t.end_tokens)))
        try:
            bar.update(0.1, "reopening")
            _answer(engine, random_tokens(info.vocab_size, PROMPT_TOKENS, args.seed, ends), 8)
            chat = random_tokens(info.vocab_size, CHAT_TOKENS, args.seed + 1, ends)
            answer = {"model": str(info.path), "device": info.device.id, **_reopening(engine, chat, path)}
        finally:
            bar.clear()
    if args.json:
        write_json(answer)
    else:
        print(printable(f"{answer['model']} ({answer['device']})\n{_reopened(answer)}"))
    return 1 if answer["session_problems"] else 0


def measure_streams(model: str, device: str, n: int, n_decode: int, seed: int) -> dict[str, Any]:
    """Loads a model and measures it; see `text_of` for what."""
    together = n * (PROMPT_TOKENS + n_decode + 32)
    context = max(CHAT_TOKENS + 128, PROMPT_TOKENS + n_decode + 1)
    bar = ProgressBar("streams")
    with loaded_engine(model, device, context, kv_tokens=max(together, context)) as (engine, info):
        ends = wait_for(
            engine.call(lambda _, t: frozenset({*t.end_tokens, *(i for i in (t.bos, t.eos) if i is not None)}))
        )

        def tokens(count: int, number: int) -> list[int]:
            return random_tokens(info.vocab_size, count, seed + number, ends)

        try:
            _answer(engine, tokens(PROMPT_TOKENS, 99), 8)
            answer = _facts(info, n, n_decode)
            prompts = [tokens(PROMPT_TOKENS, number) for number in range(n)]
            answer |= _by_turns(engine, prompts, n_decode, bar)
            bar.update(0.6, "a short request behind a long one")
            answer |= _behind(engine, tokens(LONG_PROMPT, n), tokens(PROMPT_TOKENS, n + 1))
            bar.update(0.75, "cancelling")
            answer |= _cancelling(engine, prompts)
            bar.update(0.8, "reopening")
            answer |= _reopening(engine, tokens(CHAT_TOKENS, n + 2))
        finally:
            bar.clear()
    return answer


def _facts(info: ModelInfo, n: int, n_decode: int) -> dict[str, Any]:
    return {
        "model": str(info.path),
        "quantisation": info.quantisation,
        "device": info.device.id,
        "device_name": info.device.name,
        "streams": n,
        "n_prompt": PROMPT_TOKENS,
        "n_decode": n_decode,
    }


def _request(prompt: Sequence[int], n: int | None, session: Path | None = None) -> GenerateRequest:
    return GenerateRequest(prompt_tokens=prompt, sampling=_GREEDY, max_tokens=n, ignore_eos=True, session=session)


def _answer(engine: Engine, prompt: Sequence[int], n: int, session: Path | None = None) -> tuple[list[int], Figures]:
    return _read(engine.submit(_request(prompt, n, session)))


def _read(stream: Stream) -> tuple[list[int], Figures]:
    tokens: list[int] = []
    for event in stream:
        match event:
            case Token():
                tokens.append(event.token)
            case Finished():
                return tokens, event.figures
            case Failed():
                raise event.error
    return tokens, Figures()


def _forget(engine: Engine) -> None:
    """Empties the cache, as every call does that gets the model to itself."""
    wait_for(engine.call(lambda *_: None))


def _by_turns(engine: Engine, prompts: list[list[int]], n_decode: int, bar: ProgressBar) -> dict[str, Any]:
    """Some answers one by one, then all at once, by turns, for a machine's speed changes from second to second."""
    alone: dict[int, list[int]] = {}
    together: list[list[list[int]]] = []
    one: list[float] = []
    all_: list[float] = []
    for turn in range(min(TURNS, len(prompts))):
        bar.update(0.1 + 0.5 * turn / TURNS, "one by one, and all at once")
        numbers = range(turn, len(prompts), TURNS)
        began = time.perf_counter()
        for number in numbers:
            alone[number] = _answer(engine, prompts[number], n_decode)[0]
        one.append(len(numbers) * n_decode / (time.perf_counter() - began))
        _forget(engine)
        began = time.perf_counter()
        streams = [engine.submit(_request(prompt, n_decode)) for prompt in prompts]
        together.append([_read(stream)[0] for stream in streams])
        all_.append(len(prompts) * n_decode / (time.perf_counter() - began))
        _forget(engine)
    same = [all(answers[number] == alone[number] for answers in together) for number in range(len(prompts))]
    ratios = [many / single for many, single in zip(all_, one, strict=True)]
    return {
        "one_tokens_per_s": statistics.median(one),
        "all_tokens_per_s": statistics.median(all_),
        "times_one": statistics.median(ratios),
        "times_one_of_turns": ratios,
        "same_as_alone": sum(same),
    }


def _behind(engine: Engine, long: list[int], short: list[int]) -> dict[str, Any]:
    """A short request that arrives when the prefill of a long one has begun."""
    began = time.perf_counter()
    first = engine.submit(_request(long, 1))
    while not any(isinstance(event, PrefillProgress) for event in first.wait(0.05)):
        pass
    arrived = time.perf_counter()
    second = engine.submit(_request(short, 1))
    short_s = _read(second)[1].time_to_first_token_s
    long_s = _read(first)[1].time_to_first_token_s
    return {
        "long_prompt": len(long),
        "short_arrived_s": arrived - began,
        "short_first_token_s": short_s,
        "long_first_token_s": long_s,
        "short_before_long_s": began + long_s - (arrived + short_s),
    }


def _cancelling(engine: Engine, prompts: list[list[int]]) -> dict[str, Any]:
    streams = [engine.submit(_request(prompt, None)) for prompt in prompts]
    for stream in streams:
        while not any(isinstance(event, Token) for event in stream.wait(0.05)):
            pass
    began = time.perf_counter()
    for stream in streams:
        stream.cancel()
    for stream in streams:
        _read(stream)
    return {"cancelled_s": time.perf_counter() - began, "active_after_cancel": engine.status().active_requests}


def _reopening(engine: Engine, chat: list[int], kept: Path | None = None) -> dict[str, Any]:
    """A chat as long as this one, from its session, the cache emptied before; kept: where the session stays."""
    with tempfile.TemporaryDirectory() as folder:
        session = kept or Path(folder) / "chat.session"
        computed = _answer(engine, chat, 2, session)[1].time_to_first_token_s
        problems = wait_for(engine.sessions_saved())
        size = session.stat().st_size if session.exists() else 0
        _forget(engine)
        figures = _answer(engine, chat, 2, session)[1]
        wait_for(engine.sessions_saved())
    return {
        "chat_tokens": len(chat),
        "session_bytes": size,
        "session_problems": list(problems),
        "chat_computed_s": computed,
        "chat_reopened_s": figures.time_to_first_token_s,
        "chat_cached_tokens": figures.cached_tokens,
    }


def text_of(a: dict[str, Any]) -> str:
    ratios = a["times_one_of_turns"]
    before = a["short_before_long_s"]
    order = f"{before:.2f} s before" if before > 0 else f"{-before:.2f} s after"
    return "\n".join(
        (
            f"{a['model']} ({a['quantisation']}) on {a['device_name']} ({a['device']})",
            f"one stream  {a['one_tokens_per_s']:8.1f} tokens/s  {a['n_prompt']} prompt and {a['n_decode']} new tokens",
            f"{a['streams']:>3} streams {a['all_tokens_per_s']:8.1f} tokens/s  {a['times_one']:.2f} times one "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns); "
            f"{a['same_as_alone']} of {a['streams']} answers equal those of running alone (greedy)",
            f"fairness    a request of {a['n_prompt']} tokens behind a prefill of {a['long_prompt']}: first token "
            f"after {a['short_first_token_s']:.2f} s, {order} the long prompt's",
            f"cancelling  all {a['streams']} ended within {1000 * a['cancelled_s']:.0f} ms, "
            f"{a['active_after_cancel']} still active",
            _reopened(a),
        )
    )


def _reopened(a: dict[str, Any]) -> str:
    problems = "".join(f"\n            {problem}" for problem in a["session_problems"])
    return (
        f"reopening   a chat of {a['chat_tokens']} tokens: first token after {a['chat_reopened_s']:.2f} s from its "
        f"session ({a['session_bytes'] / 1e6:.0f} MB, {a['chat_cached_tokens']} tokens), "
        f"{a['chat_computed_s']:.2f} s computed{problems}"
    )
