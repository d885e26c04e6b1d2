"""`realm bench --lora`: what adapters cost while decoding, and how long a change of them takes."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from app.cli.models import loaded_engine, model_path, wait_for
from app.cli.options import adapter_uses, add_lora_argument
from app.cli.terminal import ProgressBar, bytes_text, printable, write_json
from engine.adapters import AdapterBase, read_adapter
from engine.adapters.synthetic import write_random_adapter
from engine.api import AdapterInfo, AdapterUse, Failed, GenerateRequest, SamplingParams, Token
from engine.architectures import read_architecture
from engine.batch import LoadedModel, TakesAdapters
from engine.engine import Engine
from engine.errors import RequestError
from engine.gguf import GGUFFile
from engine.measure import AdapterCost, measure_adapters
from engine.stream import Stream

MOST_SLOWER = 0.10
LEAST_SHARE = 0.70
MOST_SWITCH_S = 0.050
"""The bars: one adapter slows a lone decode by so much at most; sequences with an adapter each keep so much of their
speed; a change takes so long at most."""

SEQUENCES = 8


def add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    add_lora_argument(parser)
    parser.add_argument(
        "--lora-rank",
        type=int,
        metavar="R",
        help="measure adapters instead: random ones of the rank R on all linear layers (with --lora: the given ones)",
    )
    parser.set_defaults(lora=[])


def run_adapters(args: argparse.Namespace) -> int:
    bar = ProgressBar("bench")
    given = adapter_uses({"lora": args.lora})
    try:
        answer = adapters_measured(
            args.model, args.device, given, args.lora_rank, args.decode_tokens, args.repetitions, bar.update
        )
    finally:
        bar.clear()
    if args.json:
        write_json(answer)
    else:
        print(printable(adapters_text(answer)))
    return 0


def adapters_measured(
    model: str,
    device: str,
    given: tuple[AdapterUse, ...],
    rank: int | None,
    steps: int,
    repetitions: int,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> dict[str, Any]:
    """What `realm bench --lora` measures; given: adapters, or none for random ones of the rank."""
    if rank is not None and not 1 <= rank <= 1024:
        raise RequestError(f"A rank of {rank} is not possible.", "Choose one from 1 to 1024.")
    context = 2 * SEQUENCES * (-(-steps // 32) * 32) + 64
    with (
        adapters_to_measure(model, given, rank) as (base, alone, several),
        loaded_engine(model, device, context) as (engine, info),
    ):
        lone, batch = wait_for(
            engine.call(lambda loaded, _: _measure(loaded, base, alone, several, steps)),
            lambda: progress(0.3, "steps"),
        )
        progress(0.9, "changes")
        changes = measure_changes(engine, alone, repetitions)
        adapter = wait_for(engine.check_adapter(alone[0].path))
    return _answer(lone, batch, changes, adapter) | {
        "model": str(info.path),
        "device": info.device.id,
        "device_name": info.device.name,
        "n_decode": steps,
    }


@contextmanager
def adapters_to_measure(
    model: str, given: tuple[AdapterUse, ...], rank: int | None
) -> Iterator[tuple[AdapterBase, list[AdapterUse], list[AdapterUse]]]:
    """What the model is to adapters; those that act on a lone sequence, and those of which each sequence gets one."""
    with GGUFFile.open(model_path(model)) as file, tempfile.TemporaryDirectory(prefix="realm-bench-") as folder:
        base = AdapterBase.of(file, read_architecture(file).graph)
        if given:
            yield base, list(given), [given[i % len(given)] for i in range(SEQUENCES)]
            return
        uses = [AdapterUse(Path(folder) / f"random-{i}.gguf") for i in range(SEQUENCES)]
        for i, use in enumerate(uses):
            write_random_adapter(use.path, base, rank or 16, seed=i)
        yield base, uses[:1], uses


def _measure(
    model: LoadedModel, base: AdapterBase, alone: Sequence[AdapterUse], several: Sequence[AdapterUse], steps: int
) -> tuple[AdapterCost, AdapterCost]:
    """Every use gets a copy of its own in memory, so that several sequences really read several adapters."""
    if not isinstance(model, TakesAdapters):
        raise RequestError("This model takes no adapters.")
    numbers: list[int] = []

    def add(use: AdapterUse) -> tuple[int, float]:
        numbers.append(model.add_adapter(base.bind(read_adapter(use.path))))
        return numbers[-1], use.strength

    try:
        lone = measure_adapters(model, [tuple(add(use) for use in alone)], steps)
        return lone, measure_adapters(model, [(add(use),) for use in several], steps)
    finally:
        for number in numbers:
            model.remove_adapter(number)


def measure_changes(engine: Engine, uses: Sequence[AdapterUse], repetitions: int) -> dict[str, tuple[float, float]]:
    """For each kind of change to a running answer: seconds that it takes between two steps, and seconds until the next
    token, which waits for the tokens so far to be computed anew. Medians; reading a file the first time goes alone."""
    times: dict[str, list[tuple[float, float]]] = {}
    weaker = [AdapterUse(use.path, use.strength / 2) for use in uses]
    for turn in range(repetitions):
        # another text each time: none finds what another has computed
        request = GenerateRequest(
            prompt_tokens=list(range(100 + turn, 132 + turn)), sampling=SamplingParams(temperature=0), ignore_eos=True
        )
        stream = engine.submit(request)
        try:
            _wait_for_token(stream)
            for name, now in (("attach", uses), ("change strength", weaker), ("detach", ())):
                began = time.perf_counter()
                # the step that runs at the moment is no part of the change: clocks are read beside it, on its thread
                before = engine.call(lambda *_: time.perf_counter(), uses_kv=False)
                change = engine.set_adapters(stream, now)
                after = engine.call(lambda *_: time.perf_counter(), uses_kv=False)
                wait_for(change)
                made = wait_for(after) - wait_for(before)
                stream.poll()  # tokens from before the change
                _wait_for_token(stream)
                key = "attach, read from the file" if turn == 0 and name == "attach" else name
                times.setdefault(key, []).append((made, time.perf_counter() - began))
        finally:
            stream.cancel()
    return {name: (median(a for a, _ in pairs), median(b for _, b in pairs)) for name, pairs in times.items()}


def _wait_for_token(stream: Stream) -> None:
    """Returns with the next token that comes, or when there will be none. Raises what the request failed with."""
    while not stream.done:
        events = stream.wait(0.1)
        if failed := next((event for event in events if isinstance(event, Failed)), None):
            raise failed.error
        if any(isinstance(event, Token) for event in events):
            return


def _answer(
    lone: AdapterCost, batch: AdapterCost, changes: dict[str, tuple[float, float]], adapter: AdapterInfo
) -> dict[str, Any]:
    return {
        "adapter": adapter.name,
        "rank": adapter.rank,
        "targets": list(adapter.targets),
        "adapter_bytes": adapter.size_bytes,
        "decode_tokens_per_s": lone.rates[0],
        "decode_tokens_per_s_with": lone.rates[1],
        "slower_by": 1 - lone.share,
        "sequences": batch.rows,
        "batch_tokens_per_s": batch.rates[0],
        "batch_tokens_per_s_with": batch.rates[1],
        "batch_share": batch.share,
        "changes": [{"change": name, "made_s": made, "next_token_s": token} for name, (made, token) in changes.items()],
    }


def adapters_text(answer: dict[str, Any]) -> str:
    slower, share = answer["slower_by"], answer["batch_share"]
    lines = [
        f"{answer['model']} on {answer['device_name']} ({answer['device']})",
        f"adapter   {answer['adapter']}, rank {answer['rank']} on {', '.join(answer['targets'])}, "
        f"{bytes_text(answer['adapter_bytes'])}",
        f"decode    {answer['decode_tokens_per_s']:8.1f} tokens/s without, {answer['decode_tokens_per_s_with']:.1f} "
        f"with: {slower:.1%} slower{_bar(slower <= MOST_SLOWER, f'at most {MOST_SLOWER:.0%} slower')}",
        f"batch     {answer['batch_tokens_per_s']:8.1f} tokens/s of {answer['sequences']} sequences without, "
        f"{answer['batch_tokens_per_s_with']:.1f} with an adapter each: {share:.0%}"
        f"{_bar(share >= LEAST_SHARE, f'at least {LEAST_SHARE:.0%}')}",
    ]
    for change in answer["changes"]:
        made = change["made_s"]
        lines.append(
            f"{'change' if change is answer['changes'][0] else '':<10}{change['change']}: {1000 * made:.1f} ms"
            f"{_bar(made <= MOST_SWITCH_S, f'at most {1000 * MOST_SWITCH_S:.0f} ms')}, the next token after "
            f"{1000 * change['next_token_s']:.0f} ms"
        )
    return "\n".join(lines)


def _bar(holds: bool, bar: str) -> str:
    return f" (bar: {bar}, {'holds' if holds else 'missed'})"
