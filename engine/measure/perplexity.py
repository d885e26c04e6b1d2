"""Perplexity of a text under a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.batch import LoadedModel
from engine.errors import RequestError
from engine.measure.logits import forward_chunks

PerplexityProgress = Callable[[int, int, float], None]
"""progress(scored tokens, tokens to score, perplexity so far)."""

_ROWS = 16  # rows of logits held in float64 at a time


@dataclass(frozen=True)
class Perplexity:
    """nll: negative natural log-likelihood of every scored token, one list per chunk, in the text's order."""

    n_ctx: int
    nll: tuple[tuple[float, ...], ...]

    @property
    def scored(self) -> int:
        return sum(len(chunk) for chunk in self.nll)

    @property
    def mean_nll(self) -> float:
        return math.fsum(value for chunk in self.nll for value in chunk) / self.scored

    @property
    def value(self) -> float:
        """exp of the mean negative log-likelihood."""
        return math.exp(self.mean_nll) if self.mean_nll < 709 else math.inf

    @property
    def standard_error(self) -> float:
        """Standard error of `value`, by error propagation from that of the mean negative log-likelihood."""
        if self.scored < 2:
            return math.nan
        mean = self.mean_nll
        variance = math.fsum((value - mean) ** 2 for chunk in self.nll for value in chunk) / (self.scored - 1)
        return self.value * math.sqrt(variance / self.scored)


def chunk_tokens(tokens: Sequence[int], n_ctx: int, bos: int | None) -> list[list[int]]:
    """Cuts the tokens of a text (without BOS) into independent sequences of at most n_ctx tokens.

    With `bos` every chunk starts with it and takes the next n_ctx - 1 tokens of the text; without, the next n_ctx.
    No token of the text is dropped, except a last one that would stand alone with nothing before it to predict it from.
    """
    if n_ctx < 2:
        raise RequestError(
            f"A context of {n_ctx} tokens is too short for perplexity.", "Choose a context of 2 tokens or more."
        )
    prefix = [] if bos is None else [bos]
    step = n_ctx - len(prefix)
    chunks = [[*prefix, *tokens[start : start + step]] for start in range(0, len(tokens), step)]
    return [chunk for chunk in chunks if len(chunk) > 1]


def measure_perplexity(
    model: LoadedModel,
    tokens: Sequence[int],
    n_ctx: int,
    bos: int | None,
    progress: PerplexityProgress | None = None,
) -> Perplexity:
    """Scores every token of a text but the first of each chunk (see `chunk_tokens`), from an empty cache per chunk.

    tokens: the text's ids without BOS; bos: the id to put before each chunk, None for models that want none.
    Raises RequestError when the text is too short to score anything.
    """
    chunks = chunk_tokens(tokens, n_ctx, bos)
    total = sum(len(chunk) - 1 for chunk in chunks)
    if total == 0:
        raise RequestError("The text is too short to measure perplexity.", "It has to hold at least two tokens.")
    scored: list[list[float]] = []
    for chunk in chunks:
        scored.append([])
        # The last token is only a target: what the model would say after it is not scored.
        for start, logits in forward_chunks(model, chunk[:-1]):
            targets = np.asarray(chunk[start + 1 : start + 1 + len(logits)], dtype=np.int64)
            scored[-1].extend(negative_log_likelihood(logits, targets).tolist())
            if progress is not None:
                so_far = Perplexity(n_ctx, tuple(map(tuple, scored)))
                progress(so_far.scored, total, so_far.value)
    return Perplexity(n_ctx, tuple(map(tuple, scored)))


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log softmax(logits[i])[targets[i]] in float64; logits [rows, n_vocab], targets [rows], result [rows]."""
    result = np.empty(len(targets), dtype=np.float64)
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        wanted = rows[np.arange(len(rows)), targets[start : start + _ROWS]]
        largest = rows.max(axis=1)
        rows -= largest[:, np.newaxis]
        np.exp(rows, out=rows)
        result[start : start + _ROWS] = np.log(rows.sum(axis=1)) + largest - wanted
    return result
