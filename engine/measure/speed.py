"""How fast a loaded model steps, without sampling, scheduling or text around it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from engine.batch import KV_BLOCK, LoadedModel
from engine.measure.logits import check_fits, sequence_batch


@dataclass(frozen=True)
class Speed:
    """Repetitions of one measurement: how many tokens each ran, and the seconds that each took."""

    tokens: int
    seconds: tuple[float, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second of each repetition."""
        return tuple(self.tokens / max(s, 1e-9) for s in self.seconds)

    @property
    def median_rate(self) -> float:
        return median(self.rates)


def random_tokens(n_vocab: int, count: int, seed: int, avoid: frozenset[int] = frozenset()) -> list[int]:
    """`count` ids drawn evenly from the vocabulary without those of `avoid`; the same seed gives the same ids."""
    rng = random.Random(seed)  # noqa: S311  # a benchmark's input, no secret
    tokens: list[int] = []
    while len(tokens) < count:
        token = rng.randrange(n_vocab)
        if token not in avoid or len(avoid) >= n_vocab:
            tokens.append(token)
    return tokens


def measure_prefill(model: LoadedModel, tokens: Sequence[int], repetitions: int) -> Speed:
    """Times the evaluation of `tokens` as a new sequence, logits of the last row wanted. One run before warms up."""
    check_fits(model, len(tokens))
    ids = np.asarray(tokens, dtype=np.int32)

    def run() -> float:
        began = time.perf_counter()
        for start in range(0, len(ids), model.max_rows):
            stop = min(start + model.max_rows, len(ids))
            last = [stop - start - 1] if stop == len(ids) else []
            model.forward(sequence_batch(ids, start, stop, np.asarray(last, dtype=np.int32)))
        return time.perf_counter() - began

    run()
    return Speed(len(ids), tuple(run() for _ in range(repetitions)))


def fill_cache(model: LoadedModel, tokens: Sequence[int], depth: int) -> None:
    """Fills the KV cache of the sequence that measure_decode() steps up to position `depth`.

    The keys and values of `tokens`, repeated to fill a block where they are fewer, are computed and copied: what they
    are makes no difference to the time that reading them takes.
    """
    check_fits(model, depth)
    ids = np.resize(np.asarray(tokens, dtype=np.int32), max(KV_BLOCK, min(len(tokens), model.max_rows)))
    model.forward(sequence_batch(ids, 0, len(ids), np.zeros(0, dtype=np.int32)))
    computed = len(ids) // KV_BLOCK
    for first in range(computed, -(-depth // KV_BLOCK), computed):
        blocks = range(first, min(first + computed, model.n_blocks))
        model.write_blocks(list(blocks), model.read_blocks(range(len(blocks))))


def measure_decode(model: LoadedModel, first: int, count: int, repetitions: int, depth: int = 0) -> Speed:
    """Times `count` greedy steps of one row each, from the token `first` at position `depth` on, whose predecessors'
    keys and values are taken as they lie in the cache (fill_cache)."""
    check_fits(model, depth + count)

    def run(steps: int) -> float:
        ids = np.full(depth + steps + 1, first, dtype=np.int32)
        wanted = np.zeros(1, dtype=np.int32)
        began = time.perf_counter()
        for position in range(depth, depth + steps):
            logits = model.forward(sequence_batch(ids, position, position + 1, wanted))
            ids[position + 1] = int(logits[0].argmax())
        return time.perf_counter() - began

    run(min(count, 8))
    return Speed(count, tuple(run(count) for _ in range(repetitions)))
