"""Which tokens of which sequences make up the next step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, Batch
from engine.errors import ContextFullError
from engine.kv import BlockManager, chain_key, n_blocks_for
from engine.pace import Pace
from engine.sequence import Sequence, Turn
from engine.swap import BlockDevice, HostMemory, SavedBlocks

LONGEST_JUMP = 64
"""Tokens of an answer that are computed like one; more of them take turns with prompts."""


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

    Decoding sequences come first with one row each, so a long prompt never stalls a running answer; prompts share the
    rows that are left, in the order of `turn`. A sequence joins when the KV cache has room for all its tokens. When a
    running answer finds no block for its next token, the sequence that came last gives its blocks back and waits; what
    they held goes to host memory, or is computed again (or found in the cache) when it returns.
    """

    def __init__(self, n_blocks: int, max_rows: int, context_length: int, device: BlockDevice) -> None:
        self.context_length = min(context_length, n_blocks * KV_BLOCK)
        self.max_blocks = n_blocks_for(self.context_length)
        self.blocks = BlockManager(n_blocks)
        self.host = HostMemory(device)
        self.pace = Pace(max_rows)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._max_rows = max_rows
        self._arrivals = 0
        self._work = 0  # rows of prompts that have been in a step so far

    @property
    def ready(self) -> bool:
        """Whether there is anything that a step could do."""
        return bool(self.running) or any(not sequence.held for sequence in self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises ContextFullError when its prompt leaves no room for an answer."""
        if sequence.n_prompt >= self.context_length:
            raise ContextFullError(
                f"The prompt has {sequence.n_prompt} tokens, but the context holds {self.context_length}, "
                "of which at least one is needed for the answer.",
                "Shorten it, remove earlier messages, or load the model with a longer context.",
            )
        known = KV_BLOCK * len(self.blocks.match(sequence.tokens, sequence.adapter_key))
        self._arrivals += 1
        sequence.turn = Turn(sequence.turn.priority, self._work + len(sequence.tokens) - known, self._arrivals)
        self.waiting.append(sequence)

    def restored(self, sequence: Sequence, first: int, data: NDArray[np.uint8]) -> None:
        """Takes a waiting sequence's blocks from `first` on, as they were read from a file."""
        if len(data):
            sequence.saved = SavedBlocks(first, data, (first + len(data)) * KV_BLOCK)
            self.host.adopt(sequence.saved)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is; its full blocks stay cached."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
        self._drop_saved(sequence)
        followers = [other for other in self.waiting if other.leader is sequence]
        for other in followers:  # the first of them computes the prompt in its stead
            other.leader = None if other is followers[0] else followers[0]

    def restart(self, sequence: Sequence) -> None:
        """Has a sequence's tokens computed again, or found in the cache: they, or what they depend on, changed."""
        if sequence in self.running:
            self._suspend(sequence, save=False)
        self._drop_saved(sequence)
        sequence.leader = sequence.restoring = None

    def suspend_all(self) -> None:
        """Gives back every block and forgets what they hold; running sequences wait until they are served again."""
        while self.running:
            self._suspend(self.running[-1])
        self.blocks.forget()

    def schedule(self) -> Step | None:
        """The next step, or None when there is nothing to do. Raises DeviceError when moving blocks failed."""
        self._make_way()
        rows = self._with_guesses(self._decodes())
        taken = sum(part.count + len(part.guesses) for part in rows)
        room = min(self._max_rows - taken, self.pace.rows(beside_answers=bool(rows)))
        pending = sorted((s for s in self.running if s.n_pending > 1 and not _jumps(s)), key=_turn)
        full = False
        while room > 0:
            newcomer = None if full else self._next_waiting()
            if newcomer is not None and not (pending and _turn(pending[0]) < _turn(newcomer)):
                if not self._admit(newcomer):
                    full = True
                    continue
                sequence = newcomer
            elif pending:
                sequence = pending.pop(0)
            else:
                break
            rows.append(_next_rows(sequence, room))
            room -= rows[-1].count
        self._work += sum(part.count for part in rows if part.count > 1)
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

    def fork(self, parent: Sequence) -> list[Sequence]:
        """Lets those who wait for the parent's prompt run, sharing its blocks; those that find no room wait on, by
        themselves. The parent has computed its prompt, and no more. Returns who runs now."""
        forked = []
        for sequence in [other for other in self.waiting if other.leader is parent]:
            sequence.leader = None
            same = sequence.adapter_key == parent.adapter_key
            if same and len(self.running) < self._max_rows and self.blocks.free > len(self.running):
                self.waiting.remove(sequence)
                blocks = parent.blocks[: n_blocks_for(parent.n_computed)]
                self.blocks.share(blocks)
                self._give(sequence, blocks)
                sequence.n_computed = parent.n_computed
                sequence.block_keys = list(parent.block_keys)
                self.running.append(sequence)
                forked.append(sequence)
        return forked

    def _remember_full(self, sequence: Sequence) -> None:
        keys = sequence.block_keys
        while (len(keys) + 1) * KV_BLOCK <= sequence.n_computed:
            start = len(keys) * KV_BLOCK
            previous = keys[-1] if keys else sequence.adapter_key
            keys.append(chain_key(previous, sequence.tokens[start : start + KV_BLOCK]))
            self.blocks.remember(sequence.blocks[len(keys) - 1], keys[-1])

    def _decodes(self) -> list[Rows]:
        # the most important first: who has to give way for another has then no row in this step yet
        rows = []
        more = self._max_rows - len(self.running)
        for sequence in sorted(self.running, key=_importance):
            if (sequence.n_pending == 1 or _jumps(sequence)) and sequence.blocks and self._grow(sequence):
                rows.append(_next_rows(sequence, 1 + more))
                more -= rows[-1].count - 1
        return rows

    def _with_guesses(self, rows: list[Rows]) -> list[Rows]:
        """Adds the sequences' guesses where rows and blocks are left over for them."""
        room = self._max_rows - sum(part.count for part in rows)
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
            if not self._free_one(sequence):
                return False
            self._give(sequence, self.blocks.allocate(1))
        return self._own(sequence)

    def _own(self, sequence: Sequence) -> bool:
        """Copies the block that the sequence's next token is written into if others use it too (copy on write);
        False when the sequence itself had to give way."""
        number = sequence.n_computed // KV_BLOCK
        while not self.blocks.may_write(sequence.blocks[number]):
            if self.blocks.free:
                [block] = self.blocks.allocate(1)
                self.host.copy(sequence.blocks[number], block)
                self.blocks.release([sequence.blocks[number]])
                sequence.blocks[number] = sequence.block_table[number] = block
            elif not self._free_one(sequence):
                return False
        return True

    def _free_one(self, sequence: Sequence) -> bool:
        """Sees to it that a block is free; False when the sequence itself had to give way."""
        while not self.blocks.free:
            last = max(self.running, key=_importance)
            self._suspend(last)
            if last is sequence:
                return False
        return True

    def _next_waiting(self) -> Sequence | None:
        return min((sequence for sequence in self.waiting if not sequence.held), key=_turn, default=None)

    def _make_way(self) -> None:
        """Suspends running sequences of lower priority when that lets the next one in."""
        newcomer = self._next_waiting()
        if newcomer is None:
            return
        lower = [s for s in self.running if s.turn.priority < newcomer.turn.priority]
        most = self.blocks.free + sum(len(s.blocks) for s in lower)
        if n_blocks_for(len(newcomer.tokens)) + len(self.running) - len(lower) > most:
            return
        while lower and not self._fits(newcomer):
            last = max(lower, key=_importance)
            lower.remove(last)
            self._suspend(last)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether the cache has room for its tokens.

        One block for each running sequence is left alone, or the newcomer would soon be suspended again.
        """
        known = self.blocks.match(sequence.tokens, sequence.adapter_key)
        wanted = n_blocks_for(len(sequence.tokens)) - len(known)
        free = self.blocks.free - self.blocks.n_cached(known)
        return len(self.running) < self._max_rows and wanted + len(self.running) <= free

    def _admit(self, sequence: Sequence) -> bool:
        """Moves a waiting sequence to the running ones if the cache has room for its tokens."""
        if not self._fits(sequence):
            return False
        known = self.blocks.match(sequence.tokens, sequence.adapter_key)
        self.waiting.remove(sequence)
        self.blocks.share(known)
        self._give(sequence, known)
        self._give(sequence, self.blocks.allocate(n_blocks_for(len(sequence.tokens)) - len(known)))
        sequence.n_computed = len(known) * KV_BLOCK
        self.running.append(sequence)
        saved = sequence.saved
        if saved is not None and saved.first <= len(known) and saved.n_tokens > sequence.n_computed:
            self.host.restore(saved, sequence.blocks[len(known) : n_blocks_for(saved.n_tokens)])
            sequence.n_computed = saved.n_tokens
            self._remember_full(sequence)
        self._drop_saved(sequence)
        return True

    def _suspend(self, sequence: Sequence, *, save: bool = True) -> None:
        self.running.remove(sequence)
        if save and sequence.saved is None:
            held = sequence.blocks[: n_blocks_for(sequence.n_computed)]
            sequence.saved = self.host.save(held, sequence.n_computed, self.pace.rows_per_s)
        self._release(sequence)
        sequence.turn = replace(sequence.turn, finish=0)  # it had its turn; none that came after it goes first
        self.waiting.append(sequence)

    def _drop_saved(self, sequence: Sequence) -> None:
        if sequence.saved is not None:
            self.host.drop(sequence.saved)
            sequence.saved = None

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


def _turn(sequence: Sequence) -> tuple[int, int, int]:
    return (-sequence.turn.priority, sequence.turn.finish, sequence.turn.arrival)


def _importance(sequence: Sequence) -> tuple[int, int]:
    return (-sequence.turn.priority, sequence.turn.arrival)


def _jumps(sequence: Sequence) -> bool:
    """Whether an answer has got several tokens at once, which its grammar forced."""
    return sequence.n_generated > 0 and 1 < sequence.n_pending <= LONGEST_JUMP


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
