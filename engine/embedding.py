"""Texts to vectors: batches of them between the steps of running requests, and the pooling of what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.api import Embeddings, ModelInfo, Pooling
from engine.batch import Batch, LoadedModel
from engine.errors import ContextFullError, DeviceError, RequestError
from engine.job import Job, JobCancelled
from engine.kv import BlockManager, n_blocks_for
from engine.tokenizer import Tokenizer

BESIDE_ROWS = 128
"""Rows of one batch of a decoder's texts, while requests are running: about what a prefill chunk beside them costs."""

Array = NDArray[np.float32]


@dataclass
class _Text:
    index: int
    tokens: list[int]
    blocks: list[int]
    done: int = 0  # tokens computed


class EmbeddingWork:
    """The texts of one Engine.embed. Runs on the engine's thread, a batch at a time.

    Raises RequestError, naming the text, for what cannot be embedded.
    """

    def __init__(
        self,
        job: Job[Embeddings],
        texts: Sequence[str],
        *,
        pooling: Pooling | None,
        normalise: bool,
        truncate: bool,
        tokenizer: Tokenizer,
        model: LoadedModel,
        info: ModelInfo,
    ) -> None:
        self.job = job
        self._model = model
        self._whole = info.is_encoder
        self.pooling = choose_pooling(pooling, info)
        self._normalise = normalise
        if not model.hidden_width:
            raise RequestError(f"{info.name} gives no embeddings.", "Choose another model.")
        limit = min(info.context_length, model.max_rows) if self._whole else info.context_length
        lists = [tokenizer.encode(text) for text in texts]
        self._truncated = [i for i, tokens in enumerate(lists) if len(tokens) > limit]
        if self._truncated and not truncate:
            first = self._truncated[0]
            raise ContextFullError(
                f"Text {first + 1} has {len(lists[first])} tokens, but {info.name} is loaded for {limit}.",
                "Shorten it, or let what is too long be cut off (truncate)."
                if limit >= info.trained_context_length
                else "Shorten it, load the model with a longer context, or let what is too long be cut off (truncate).",
            )
        for i, tokens in enumerate(lists):
            if not tokens:
                raise RequestError(f"Text {i + 1} has no tokens.", "Give a text that is not empty.")
            lists[i] = cut(tokens, limit, tokenizer)
        self.counts = [len(tokens) for tokens in lists]
        self._waiting = [_Text(i, tokens, []) for i, tokens in enumerate(lists)]
        self._waiting.sort(key=lambda text: -len(text.tokens))  # texts of a batch are about as long
        self._running: list[_Text] = []
        self._results: list[Array | None] = [None] * len(lists)
        self._sums = np.zeros((len(lists) if self.pooling is Pooling.MEAN else 0, model.hidden_width), np.float64)

    def _finished(self) -> bool:
        return not self._waiting and not self._running

    def step(self, blocks: BlockManager, *, alone: bool) -> bool:
        """Runs one batch, finishes the job with the last; False when there was no room in the cache for any text.

        alone: no request is running that a large batch would hold up. Raises DeviceError when the device failed.
        """
        if self.job.cancel_requested:
            self.end(blocks)
            self.job.fail(JobCancelled())
            return True
        if self._finished():
            self._succeed()
            return True
        rows = self._choose(blocks, alone)
        if not rows:
            return False
        try:
            hidden = self._model.hidden(_batch(rows, self._wanted(rows)))
            self._pool(rows, hidden)
        except DeviceError:
            raise
        except Exception:
            self.end(blocks)
            raise
        for text, count in rows:
            text.done += count
            if text.done == len(text.tokens):
                blocks.release(text.blocks)
                self._running.remove(text)
        if self._finished():
            self._succeed()
        return True

    def end(self, blocks: BlockManager) -> None:
        """Gives everything back before the end."""
        self.suspend(blocks)
        self._waiting = []

    def suspend(self, blocks: BlockManager) -> None:
        """Gives every block back; texts that were begun are computed again."""
        for text in self._running:
            blocks.release(text.blocks)
            text.blocks, text.done = [], 0
            self._results[text.index] = None
            if self.pooling is Pooling.MEAN:
                self._sums[text.index] = 0
        self._waiting[:0] = self._running
        self._running = []

    def _choose(self, blocks: BlockManager, alone: bool) -> list[tuple[_Text, int]]:
        """The next batch: texts and how many of their tokens. An encoder's texts go whole."""
        room = self._model.max_rows if alone or self._whole else min(BESIDE_ROWS, self._model.max_rows)
        chosen: list[tuple[_Text, int]] = []
        for text in self._running:
            if room > 0:
                chosen.append((text, min(room, len(text.tokens) - text.done)))
                room -= chosen[-1][1]
        while self._waiting and room > 0:
            text = self._waiting[0]
            wanted = n_blocks_for(len(text.tokens))
            if wanted > blocks.free or (self._whole and len(text.tokens) > room):
                break
            self._running.append(self._waiting.pop(0))
            text.blocks = blocks.allocate(wanted)
            chosen.append((text, min(room, len(text.tokens))))
            room -= chosen[-1][1]
        return chosen

    def _wanted(self, rows: list[tuple[_Text, int]]) -> NDArray[np.int32]:
        """Which rows of the batch the pooling reads."""
        wanted: list[int] = []
        start = 0
        for text, count in rows:
            if self.pooling in (Pooling.MEAN, Pooling.NONE):
                wanted += range(start, start + count)
            elif self.pooling is Pooling.CLS:
                wanted += [start][: text.done == 0]
            elif text.done + count == len(text.tokens):
                wanted.append(start + count - 1)
            start += count
        return np.array(wanted, np.int32)

    def _pool(self, rows: list[tuple[_Text, int]], hidden: Array) -> None:
        at = 0
        for text, count in rows:
            i = text.index
            if self.pooling is Pooling.MEAN:
                self._sums[i] += hidden[at : at + count].sum(axis=0, dtype=np.float64)
                at += count
                if text.done + count == len(text.tokens):
                    self._results[i] = (self._sums[i] / len(text.tokens)).astype(np.float32)[None]
            elif self.pooling is Pooling.NONE:
                part, before = hidden[at : at + count].copy(), self._results[i]
                self._results[i] = part if before is None else np.concatenate([before, part])
                at += count
            elif text.done == 0 if self.pooling is Pooling.CLS else text.done + count == len(text.tokens):
                self._results[i] = hidden[at : at + 1].copy()
                at += 1

    def _succeed(self) -> None:
        parts = [part for part in self._results if part is not None]
        vectors = np.concatenate(parts) if parts else np.zeros((0, self._model.hidden_width), np.float32)
        if self._normalise:
            vectors = normalised(vectors)
        self.job.succeed(Embeddings(vectors, tuple(self.counts), self.pooling, self._normalise, tuple(self._truncated)))


def choose_pooling(asked: Pooling | None, info: ModelInfo) -> Pooling:
    """What was asked for, else what the model's file says, else the mean. Raises RequestError for a reranker."""
    if asked is not None:
        return asked
    if info.pooling == "rank":
        raise RequestError(
            f"{info.name} is a reranker: it scores pairs of texts, which Realm does not do.",
            "Ask for the pooling mean, cls or last to have vectors of it.",
        )
    return Pooling(info.pooling) if info.pooling else Pooling.MEAN


def cannot_chat(name: str) -> RequestError:
    """What is said to who wants an answer of an encoder."""
    return RequestError(
        f"{name} is an encoder: it turns texts into vectors and cannot chat.",
        "Use it with `realm embed`, or load a chat model.",
    )


def cut(tokens: list[int], limit: int, tokenizer: Tokenizer) -> list[int]:
    """The first `limit` tokens; the token that ends a text, where the model adds one, stays the last."""
    if len(tokens) <= limit:
        return tokens
    return [*tokens[: limit - 1], tokens[-1]] if tokenizer.add_eos and limit > 1 else tokens[:limit]


def normalised(vectors: Array) -> Array:
    """The vectors [n, width] at length 1; one of zeros stays one."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    out: Array = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return out


def _batch(rows: list[tuple[_Text, int]], wanted: NDArray[np.int32]) -> Batch:
    tables = np.zeros((len(rows), max(len(text.blocks) for text, _ in rows)), np.int32)
    for table, (text, _) in zip(tables, rows, strict=True):
        table[: len(text.blocks)] = text.blocks
    counts = [count for _, count in rows]
    return Batch(
        tokens=np.concatenate([text.tokens[text.done : text.done + count] for text, count in rows]).astype(np.int32),
        positions=np.concatenate([np.arange(text.done, text.done + count) for text, count in rows]).astype(np.int32),
        sequences=np.repeat(np.arange(len(rows)), counts).astype(np.int32),
        block_tables=tables,
        logit_rows=wanted,
    )
