"""Which tokens of which sequences make up the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from engine.batch import KV_BLOCK, Batch
from engine.errors import ContextFullError
from engine.kv import BlockManager, chain_key, n_blocks_for
from engine.sequence import Sequence


@dataclass(frozen=True)
class Rows:
    """The next `count` tokens of a sequence; `samples` when they are its last, so that a new one can be sampled.

    guesses: tokens that may follow them; they and the last token before them have logits.
    """

    sequence: Sequence
    count: int
    samples: bool
    guesses: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """rows: in the order of the batch. The logits that come back belong to the rows that sample, in this order:
    one for each sequence and one for each of its guesses."""

    batch: Batch
    rows: list[Rows]


class Scheduler:
    """Continuous batching: sequences join and leave at every step.

    Decoding sequences come first with one row each, so a long prompt never stalls a running answer; prompts share
    the rows that are left, first come first served. A sequence joins when the KV cache has room for all its tokens.
    When a running answer finds no block for its next token, the sequence that came last gives its blocks back and
    waits at the front; its tokens are computed again (or found in the cache) when it returns.
    """

    def __init__(self, n_blocks: int, max_rows: int, context_length: int) -> None:
        self.context_length = min(context_length, n_blocks * KV_BLOCK)
        self.max_blocks = n_blocks_for(self.context_length)
        self.blocks = BlockManager(n_blocks)
        self.running: list[Sequence] = []  # in the order in which they came
        self.waiting: deque[Sequence] = deque()
        self._max_rows = max_rows

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises ContextFullError when its prompt leaves no room for an answer."""
        if sequence.n_prompt >= self.context_length:
            raise ContextFullError(
                f"The prompt has {sequence.n_prompt} tokens, but the context holds {self.context_length}, "
                "of which at least one is needed for the answer.",
                "Shorten it, remove earlier messages, or load the model with a longer context.",
            )
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is; its full blocks stay cached."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Has a sequence's tokens computed again, or found in the cache: what its keys and values depend on changed."""
        if sequence in self.running:
            self._suspend(sequence)

    def suspend_all(self) -> None:
        """Gives back every block and forgets what they hold; running sequences wait and are computed again."""
        while self.running:
            self._suspend(self.running[-1])
        self.blocks.forget()

    def schedule(self) -> Step | None:
        """The next step, or None when there is nothing to do."""
        rows = self._with_guesses(self._decodes())
        room = self._max_rows - sum(part.count + len(part.guesses) for part in rows)
        for sequence in self.running:
            if sequence.n_pending > 1 and room > 0:
                rows.append(_next_rows(sequence, room))
                room -= rows[-1].count
        while room > 0 and self._admit():
            rows.append(_next_rows(self.running[-1], room))
            room -= rows[-1].count
        return Step(_batch(rows), rows) if rows else None

    def advance(self, step: Step) -> None:
        """After the forward pass: the step's tokens are in the cache, and full blocks may be shared."""
        for rows in step.rows:
            rows.sequence.n_computed += rows.count
            self._remember_full(rows.sequence)

    def keep_guess(self, sequence: Sequence) -> None:
        """The sequence's newest token was a guess of the last step: its keys and values are in the cache."""
        sequence.n_computed += 1
        self._remember_full(sequence)

    def drop_guesses(self, sequence: Sequence) -> None:
        """Gives back the blocks that only held guesses; what they wrote elsewhere is overwritten by what follows."""
        kept = n_blocks_for(len(sequence.tokens))
        surplus = sequence.blocks[kept:]
        if surplus:
            self.blocks.release(surplus)
            del sequence.blocks[kept:]
            sequence.block_table[kept:] = 0

    def _remember_full(self, sequence: Sequence) -> None:
        keys = sequence.block_keys
        while (len(keys) + 1) * KV_BLOCK <= sequence.n_computed:
            start = len(keys) * KV_BLOCK
            previous = keys[-1] if keys else sequence.adapter_key
            keys.append(chain_key(previous, sequence.tokens[start : start + KV_BLOCK]))
            self.blocks.remember(sequence.blocks[len(keys) - 1], keys[-1])

    def _decodes(self) -> list[Rows]:
        return [
            Rows(sequence, 1, True)
            for sequence in list(self.running)
            if sequence.n_pending == 1 and sequence.blocks and self._grow(sequence)
        ]

    def _with_guesses(self, rows: list[Rows]) -> list[Rows]:
        """Adds the sequences' guesses where rows and blocks are left over for them."""
        room = self._max_rows - len(rows)
        out = []
        for part in rows:
            sequence, guess = part.sequence, part.sequence.guess
            if guess is not None:
                wanted = n_blocks_for(len(sequence.tokens) + min(len(guess.tokens), room)) - len(sequence.blocks)
                if 0 < wanted <= self.blocks.free:
                    self._give(sequence, self.blocks.allocate(wanted))
                guess.cut(min(room, len(sequence.blocks) * KV_BLOCK - len(sequence.tokens)))
                room -= len(guess.tokens)
                part = Rows(sequence, 1, True, tuple(guess.tokens))
            out.append(part)
        return out

    def _grow(self, sequence: Sequence) -> bool:
        """Makes room for the sequence's last token; False when the sequence itself had to give way."""
        while len(sequence.blocks) * KV_BLOCK < len(sequence.tokens):
            if self.blocks.free:
                self._give(sequence, self.blocks.allocate(1))
            else:
                last = self.running[-1]
                self._suspend(last)
                if last is sequence:
                    return False
        return True

    def _admit(self) -> bool:
        """Moves the first waiting sequence to the running ones if the cache has room for its tokens.

        One block for each running sequence is left alone, or the newcomer would soon be suspended again.
        """
        if not self.waiting or len(self.running) >= self._max_rows:
            return False
        sequence = self.waiting[0]
        known = self.blocks.match(sequence.tokens, sequence.adapter_key)
        wanted = n_blocks_for(len(sequence.tokens)) - len(known)
        if wanted + len(self.running) > self.blocks.free - self.blocks.n_cached(known):
            return False
        self.waiting.popleft()
        self.blocks.share(known)
        self._give(sequence, known)
        self._give(sequence, self.blocks.allocate(wanted))
        sequence.n_computed = len(known) * KV_BLOCK
        self.running.append(sequence)
        return True

    def _suspend(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    @staticmethod
    def _give(sequence: Sequence, blocks: list[int]) -> None:
        n = len(sequence.blocks)
        sequence.block_table[n : n + len(blocks)] = blocks
        sequence.blocks += blocks

    def _release(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.guess = None
        sequence.blocks = []
        sequence.block_table[:] = 0
        sequence.block_keys = []
        sequence.n_computed = 0


def _next_rows(sequence: Sequence, room: int) -> Rows:
    count = min(sequence.n_pending, room)
    return Rows(sequence, count, count == sequence.n_pending)


def _batch(rows: list[Rows]) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    logit_rows: list[int] = []
    for index, part in enumerate(rows):
        count = part.count + len(part.guesses)
        start = part.sequence.n_computed
        tokens += part.sequence.tokens[start : start + part.count]
        tokens += part.guesses
        positions += range(start, start + count)
        sequences += [index] * count
        if part.samples:
            logit_rows += range(len(tokens) - len(part.guesses) - 1, len(tokens))
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        sequences=np.array(sequences, np.int32),
        block_tables=np.array([part.sequence.block_table for part in rows], np.int32),
        logit_rows=np.array(logit_rows, np.int32),
        adapters=tuple(part.sequence.adapters for part in rows),
    )
