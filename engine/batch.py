"""One step of the engine is one flat batch of rows; a row is one token of one sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engine.adapters.base import BoundAdapter
from engine.adapters.runs import AdapterSet
from engine.api import DeviceInfo
from engine.graph import Graph

KV_BLOCK = 32
"""Tokens in one block of the paged KV cache."""


ENCODER_BLOCKS = 4
"""An encoder's cache has so many blocks for each that its longest text fills."""


@dataclass(frozen=True)
class Batch:
    """Input of one forward step.

    tokens: int32 [rows]. Already checked to lie inside the vocabulary.
    positions: int32 [rows], the token's place in its sequence, from 0.
    sequences: int32 [rows], index into block_tables of the sequence a row belongs to. The rows of one sequence are
        adjacent and their positions ascend by one.
    block_tables: int32 [n_sequences, max_blocks]; entry b of a sequence is the physical KV block that holds its
        positions b*KV_BLOCK .. (b+1)*KV_BLOCK-1. Unused entries are 0. Keys and values of every row's own position
        are written by the step before attention reads positions 0..position of the same sequence.
    logit_rows: int32 [m], the rows whose logits are wanted, ascending; may be empty.
    adapters: for each sequence the adapters that act on its rows; empty where none act on any. A row without adapters
        comes out bit for bit as it would if the others had none either.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]
    adapters: tuple[AdapterSet, ...] = ()


@dataclass(frozen=True)
class MemoryUse:
    """streamed_bytes: weights that are not among weight_bytes: every step reads them from the file again.

    idle_bytes: the part of scratch_bytes that one answer alone leaves untouched, which a process does not take then:
    logits of further rows.
    """

    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    streamed_bytes: int = 0
    idle_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes


class LoadedModel(Protocol):
    """A model on a device, ready to step. Used from the engine's thread only."""

    device: DeviceInfo
    n_vocab: int
    n_blocks: int  # physical KV blocks
    max_rows: int  # the largest batch that one call takes
    weight_bytes_per_token: int  # weight bytes a decode step of one row reads
    hidden_width: int  # numbers of a row that hidden() gives; 0 for a model without a last norm

    @property
    def block_bytes(self) -> int:
        """What `read_blocks` gives for one block."""
        ...

    @property
    def kv_layout(self) -> str:
        """Names what those bytes mean: they may be exchanged between models with the same weights and name."""
        ...

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Runs one step; returns logits float32 [len(logit_rows), n_vocab], valid until the next call.

        Raises DeviceError when the device fails; the model is then unusable. An encoder (Graph.causal is False) has no
        logits: forward() gives what hidden() does.
        """
        ...

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """Runs one step up to Graph.hidden; float32 [len(logit_rows), hidden_width], valid until the next call.

        An encoder needs all of a sequence in one batch. Raises as forward().
        """
        ...

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        """The keys and values that physical KV blocks hold, as bytes [len(blocks), block_bytes]; a copy.

        Raises DeviceError as `forward` does, and MemoryError.
        """
        ...

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Puts back what `read_blocks` gave, into these blocks; data: [len(blocks), block_bytes]."""
        ...

    def memory(self) -> MemoryUse: ...

    def read_bandwidth(self) -> float | None:
        """Measured read bandwidth of the device in bytes/s, or None if it was not measured."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class KeepsRows(Protocol):
    """A LoadedModel that has more to say of a step than its result."""

    @property
    def kept_width(self) -> int:
        """Numbers of a row that kept() gives; 0: this model keeps none."""
        ...

    def kept(self) -> NDArray[np.float32]:
        """What Graph.kept was in the step of the last forward() or top(); float32 [rows, kept_width], valid until the
        next. Costs nothing where nobody asks. Raises DeviceError."""
        ...


@dataclass(frozen=True)
class TopLogits:
    """The largest logits of one row, descending, of equal ones the lowest id first: ids int64 [n], logits float32 [n].
    finite: all logits of the row are numbers."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    finite: bool


@runtime_checkable
class GivesTop(Protocol):
    """A LoadedModel that finds the largest logits on its device."""

    @property
    def most_top(self) -> int:
        """How many of a row's; 0: none for this model."""
        ...

    def top(self, batch: Batch, count: int, among: int) -> list[TopLogits]:
        """Runs one step as `forward` does; of each wanted row the `count` (at most `most_top`) largest of the first
        `among` logits. Raises as `forward`."""
        ...


@runtime_checkable
class Overlaps(Protocol):
    """A LoadedModel whose device computes by itself once a step is queued."""

    meanwhile: Callable[[], None]
    """Called in every step between queueing it and waiting for it. It must not raise."""


def nothing() -> None:
    """For `Overlaps.meanwhile`, where there is nothing to do."""


@runtime_checkable
class TakesAdapters(Protocol):
    """A LoadedModel whose batches may name adapters."""

    def add_adapter(self, adapter: BoundAdapter) -> int:
        """Takes in an adapter, so that batches may name it by the number that comes back.

        Raises AdapterError where it acts on something that this backend does not apply adapters to, and
        OutOfMemoryError, which leave the model as it was.
        """
        ...

    def remove_adapter(self, number: int) -> None:
        """Frees an adapter; no later batch names it."""
        ...


class PartModel(LoadedModel, TakesAdapters, Protocol):
    """A LoadedModel that may be a part of one. `given`: where its graph begins with Input, the rows of the batch,
    float32 [rows, width]."""

    def forward(self, batch: Batch, given: NDArray[np.float32] | None = None) -> NDArray[np.float32]: ...

    def hidden(self, batch: Batch, given: NDArray[np.float32] | None = None) -> NDArray[np.float32]: ...


class PredictionModel(PartModel, KeepsRows, Protocol):
    """A layer that predicts further tokens (engine/architectures/prediction.py): given rows, and keeping its own."""


Progress = Callable[[str, float, str], None]
"""progress(stage, fraction 0..1 of that stage, detail)."""


def step_rows(graph: Graph, n_blocks: int, usual: int) -> int:
    """Rows of one step: `usual`, but for an encoder, whose texts go through whole, as many as a quarter of its cache
    holds; the rest is room for many short texts, whose last blocks are part empty."""
    return usual if graph.causal else max(KV_BLOCK, n_blocks // ENCODER_BLOCKS * KV_BLOCK)


def given_to_parts(parts: Sequence[Batch], given: NDArray[np.float32] | None) -> list[NDArray[np.float32]] | list[None]:
    """Each part's own of the rows that a whole batch was given; the parts are those of the batch in order."""
    if given is None:
        return [None] * len(parts)
    ends = np.cumsum([len(part.tokens) for part in parts]).tolist()
    return [given[end - len(part.tokens) : end] for part, end in zip(parts, ends, strict=True)]


def split_logit_rows(batch: Batch, most: int) -> list[Batch]:
    """Cuts a batch so that no part wants more than `most` rows of logits; parts run one after the other."""
    if len(batch.logit_rows) <= most:
        return [batch]
    parts = []
    for first in range(0, len(batch.logit_rows), most):
        wanted = batch.logit_rows[first : first + most]
        start = 0 if first == 0 else int(batch.logit_rows[first - 1]) + 1
        end = len(batch.tokens) if first + most >= len(batch.logit_rows) else int(wanted[-1]) + 1
        rows = slice(start, end)
        parts.append(
            replace(
                batch,
                tokens=batch.tokens[rows],
                positions=batch.positions[rows],
                sequences=batch.sequences[rows],
                logit_rows=(wanted - start).astype(np.int32),
            )
        )
    return parts
