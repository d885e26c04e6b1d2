"""Decoding behind long contexts, for each type of the KV cache; `make bench ARGS="--contexts"`."""

from __future__ import annotations

from pathlib import Path

from engine.api import KV_TYPES, LoadOptions
from engine.batch import KV_BLOCK
from engine.loader import load_model
from engine.measure import fill_cache, measure_decode, random_tokens

DEPTHS = (512, 4096, 16384)
STEPS = 32


def contexts_page(path: Path, device: str, repetitions: int, depths: tuple[int, ...] = DEPTHS) -> str:
    """A section of the page: tokens per second behind each depth, and what share of that behind the first it is."""
    lines = [
        "## Long contexts",
        "",
        f"{path.name}, {STEPS} tokens one by one behind a filled cache, medians of {repetitions} runs.",
        "",
        "| KV cache | Behind | Tokens/s | Of that behind the first | Of f16 behind the first | Cache read per token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = 0.0
    context = max(depths) + STEPS + 1
    for kv_type in KV_TYPES:
        options = LoadOptions(device=device, context_length=context, kv_type=kv_type)
        model = load_model(path, options, lambda *_: None).model
        tokens = random_tokens(model.n_vocab, 512, 1)
        own = 0.0
        for depth in depths:
            fill_cache(model, tokens, depth)
            rate = measure_decode(model, tokens[0], STEPS, repetitions, depth).median_rate
            own, base = own or rate, base or rate
            read = model.block_bytes / KV_BLOCK * depth / 1e6
            lines.append(f"| {kv_type} | {depth} | {rate:.1f} | {rate / own:.0%} | {rate / base:.0%} | {read:.0f} MB |")
        model.close()
    return "\n".join(lines) + "\n"
