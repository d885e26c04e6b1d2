"""Two models on the same text: how far the probabilities of one are from those of the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.batch import LoadedModel
from engine.errors import RequestError
from engine.measure.logits import forward_chunks, most_rows
from engine.measure.perplexity import Perplexity, chunk_tokens

CompareProgress = Callable[[int, int], None]
"""progress(compared tokens, tokens to compare)."""

_ROWS = 16  # rows of log-probabilities held in float64 at a time


@dataclass(frozen=True)
class Comparison:
    """perplexity_a, perplexity_b: of the same tokens. divergence: Kullback-Leibler divergence of B from A in nats,
    sum(p_A * (log p_A - log p_B)), at every scored position. agreements: positions where both find the same token
    likeliest."""

    perplexity_a: Perplexity
    perplexity_b: Perplexity
    divergence: NDArray[np.float64]
    agreements: int

    @property
    def mean_divergence(self) -> float:
        return float(self.divergence.mean())

    @property
    def agreement(self) -> float:
        """Share of the positions, 0..1."""
        return self.agreements / len(self.divergence)


def compare_models(
    a: LoadedModel,
    b: LoadedModel,
    tokens: Sequence[int],
    n_ctx: int,
    bos: int | None,
    progress: CompareProgress | None = None,
) -> Comparison:
    """Steps both models through a text, cut into chunks as `measure_perplexity` cuts it, and compares what they say
    after every token but the last of a chunk.

    Memory: the logits of one step of each model; of them only numbers per position are kept. Raises RequestError when
    the vocabularies differ in size or the text is too short.
    """
    if a.n_vocab != b.n_vocab:
        raise RequestError(
            f"The models have vocabularies of {a.n_vocab} and {b.n_vocab} tokens, so their probabilities cannot be "
            "compared.",
            "Compare files of the same model.",
        )
    chunks = chunk_tokens(tokens, n_ctx, bos)
    total = sum(len(chunk) - 1 for chunk in chunks)
    if total == 0:
        raise RequestError("The text is too short to compare on.", "It has to hold at least two tokens.")
    rows = min(most_rows(a), most_rows(b))
    divergence = np.empty(total, np.float64)
    nll: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    agreements = done = 0
    for chunk in chunks:
        of_chunk: tuple[list[float], list[float]] = ([], [])
        steps = zip(forward_chunks(a, chunk[:-1], rows), forward_chunks(b, chunk[:-1], rows), strict=True)
        for (start, logits_a), (_, logits_b) in steps:
            for first in range(0, len(logits_a), _ROWS):
                some = slice(first, first + _ROWS)
                log_a, log_b = log_probabilities(logits_a[some]), log_probabilities(logits_b[some])
                targets = chunk[start + 1 + first : start + 1 + first + len(log_a)]
                for values, log in zip(of_chunk, (log_a, log_b), strict=True):
                    values.extend((-log[np.arange(len(log)), targets]).tolist())
                agreements += int((log_a.argmax(axis=1) == log_b.argmax(axis=1)).sum())
                divergence[done : done + len(log_a)] = kl_divergence(log_a, log_b)
                done += len(log_a)
            if progress is not None:
                progress(done, total)
        for values_per_chunk, values in zip(nll, of_chunk, strict=True):
            values_per_chunk.append(tuple(values))
    return Comparison(Perplexity(n_ctx, tuple(nll[0])), Perplexity(n_ctx, tuple(nll[1])), divergence, agreements)


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """log softmax of each row, in float64; [rows, n_vocab]."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def kl_divergence(log_a: NDArray[np.float64], log_b: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum(exp(log_a) * (log_a - log_b)) of each row; what rounding makes negative is 0.

    A token that A rules out (log -inf) adds nothing, one that only B rules out makes it infinite.
    """
    p = np.exp(log_a)
    with np.errstate(invalid="ignore"):
        terms = p * (log_a - log_b)
    terms[p == 0.0] = 0.0
    divergence: NDArray[np.float64] = np.maximum(terms.sum(axis=1), 0.0)
    return divergence


def percentile(divergence: NDArray[np.float64], share: float) -> float:
    """The divergence that `share` (0..1) of the positions stay at or below."""
    value = float(np.quantile(divergence, share, method="higher"))
    return value if not math.isnan(value) else math.inf
