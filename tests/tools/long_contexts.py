"""Decoding behind long contexts, for each type of the KV cache; `make bench ARGS="--contexts"`."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from engine.api import KV_TYPES, LoadOptions
from engine.batch import KV_BLOCK
from engine.loader import load_model
from engine.measure import fill_cache, measure_decode, random_tokens

DEPTHS = (512, 4096, 16384)
STEPS = 32


def contexts_page(path: Path, device: str, repetitions: int, depths: tuple[int, ...] = DEPTHS) -> str:
    """A section of the page: tokens per second behind each depth, and what share of that behind the first it is.

    The depths are measured by turns, so that memory whose speed changes from minute to minute changes for all of them.
    """
    lines = [
        "## Long contexts",
        "",
        f"{path.name}, {STEPS} tokens one by one behind a filled cache, medians of {repetitions} runs that alternate",
        "between the depths. The last two columns: bytes beyond those behind the first depth by the further time, and",
        "how fast the device read weights when the model was loaded.",
        "",
        "| KV cache | Behind | Tokens/s | Of that behind the first | Of f16 behind the first | Cache read per token "
        "| Further bytes come at | Device reads at |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    base = 0.0
    context = max(depths) + STEPS + 1
    for kv_type in KV_TYPES:
        options = LoadOptions(device=device, context_length=context, kv_type=kv_type)
        model = load_model(path, options, lambda *_: None).model
        tokens = random_tokens(model.n_vocab, 512, 1)
        fill_cache(model, tokens, max(depths))
        turns = [
            [measure_decode(model, tokens[0], STEPS, 1, depth).median_rate for depth in depths]
            for _ in range(repetitions)
        ]
        rates = [median(rates) for rates in zip(*turns, strict=True)]
        base = base or rates[0]
        bandwidth = model.read_bandwidth()
        for i, (depth, rate) in enumerate(zip(depths, rates, strict=True)):
            share = median(turn[i] / turn[0] for turn in turns)
            read = model.block_bytes / KV_BLOCK * depth
            further = model.block_bytes / KV_BLOCK * (depth - depths[0])
            seconds = 1 / rate - 1 / rates[0]
            speed = f"{further / seconds / 1e9:.0f} GB/s" if further and seconds > 0 else ""
            lines.append(
                f"| {kv_type} | {depth} | {rate:.1f} | {share:.0%} | {rate / base:.0%} | {read / 1e6:.0f} MB "
                f"| {speed} | {'' if bandwidth is None else f'{bandwidth / 1e9:.0f} GB/s'} |"
            )
        model.close()
    return "\n".join(lines) + "\n"
