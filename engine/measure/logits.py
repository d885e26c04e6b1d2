"""Teacher-forced logits: what the model says after every token of a given sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.errors import ContextFullError, RequestError

LOGITS_BYTES = 64 << 20
"""Most bytes of logits that one step is asked for, so that a large vocabulary does not decide the peak memory."""


def check_tokens(model: LoadedModel, tokens: Sequence[int]) -> NDArray[np.int32]:
    """Returns tokens as int32 [n].

    Raises RequestError when there are none or one lies outside of the vocabulary, ContextFullError when there are
    more than the KV cache holds.
    """
    if len(tokens) == 0:
        raise RequestError("There are no tokens to evaluate.", "Give at least one token id.")
    for index, token in enumerate(tokens):
        if not 0 <= token < model.n_vocab:
            raise RequestError(
                f"Token id {token} (number {index + 1} of the list) is outside of the vocabulary "
                f"of {model.n_vocab} tokens.",
                f"Token ids run from 0 to {model.n_vocab - 1}.",
            )
    check_fits(model, len(tokens))
    return np.asarray(tokens, dtype=np.int32)


def check_fits(model: LoadedModel, n_tokens: int) -> None:
    """Raises ContextFullError when the KV cache has no room for a sequence of n_tokens."""
    room = model.n_blocks * KV_BLOCK
    if n_tokens > room:
        raise ContextFullError(
            f"{n_tokens} tokens do not fit into the context of {room} tokens.",
            "Load the model with a larger context length or give fewer tokens.",
        )


def sequence_batch(tokens: NDArray[np.int32], start: int, stop: int, logit_rows: NDArray[np.int32]) -> Batch:
    """The step that evaluates tokens[start:stop] of one sequence whose position p lies in KV block p // KV_BLOCK."""
    rows = stop - start
    n_blocks = -(-stop // KV_BLOCK)
    return Batch(
        tokens=np.ascontiguousarray(tokens[start:stop], dtype=np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        sequences=np.zeros(rows, dtype=np.int32),
        block_tables=np.arange(n_blocks, dtype=np.int32)[np.newaxis, :],
        logit_rows=logit_rows,
    )


def most_rows(model: LoadedModel) -> int:
    """The most rows that one step should ask the logits of."""
    return max(1, min(model.max_rows, LOGITS_BYTES // (4 * model.n_vocab)))


def forward_chunks(
    model: LoadedModel, tokens: Sequence[int], rows: int | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Evaluates one sequence from position 0, in steps of `rows` (None: most_rows()), and yields (position, logits).

    logits is float32 [rows, n_vocab] for positions position .. position+rows-1, valid until the next step. The
    sequence takes the KV blocks from 0 on: whatever they held is overwritten.
    """
    ids = check_tokens(model, tokens)
    rows = most_rows(model) if rows is None else rows
    for start in range(0, len(ids), rows):
        stop = min(start + rows, len(ids))
        yield start, model.forward(sequence_batch(ids, start, stop, np.arange(stop - start, dtype=np.int32)))


def logits_of(model: LoadedModel, tokens: Sequence[int], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Logits float32 [n_tokens, n_vocab] after each token of one sequence, written into `out` where it is given."""
    if out is None:
        out = np.empty((len(tokens), model.n_vocab), dtype=np.float32)
    for start, logits in forward_chunks(model, tokens):
        out[start : start + len(logits)] = logits
    return out
