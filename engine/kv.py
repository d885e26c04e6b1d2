"""Which physical blocks of the paged KV cache belong to whom, and which of them hold what."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from engine.batch import KV_BLOCK

Key = bytes
"""Names the content of a full block together with everything before it in its sequence."""


def chain_key(previous: Key, tokens: Sequence[int]) -> Key:
    """Key of the block that holds `tokens` and follows the block named `previous` (b"" plus adapters at the start)."""
    return blake2b(previous + np.asarray(tokens, np.int32).tobytes(), digest_size=16).digest()


class BlockManager:
    """Blocks with reference counts. Only full blocks are shared, so nobody ever writes into a block of another.

    A block is unused, cached (no one holds it, but its content is known and may serve again) or held. When the
    unused ones run out, the cached block that was given up longest ago is taken.
    """

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self._unused = list(range(n_blocks - 1, -1, -1))
        self._holders = [0] * n_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def free(self) -> int:
        """How many blocks `allocate` can give."""
        return len(self._unused) + len(self._cached)

    def holders(self, block: int) -> int:
        return self._holders[block]

    def may_write(self, block: int) -> bool:
        """Whether its only holder may change what it holds: nobody else holds it or may come to."""
        return self._holders[block] == 1 and block not in self._key_of

    def match(self, tokens: Sequence[int], adapter_key: Key = b"") -> list[int]:
        """Blocks that already hold the start of `tokens`, in order. They are not held yet.

        At least the last token is left out: a step has to compute it to give logits.
        """
        blocks = []
        for key in prefix_keys(tokens, adapter_key):
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def n_cached(self, blocks: Sequence[int]) -> int:
        """How many of these blocks count as free as long as nobody holds them."""
        return sum(1 for block in blocks if self._holders[block] == 0)

    def share(self, blocks: Sequence[int]) -> None:
        """Holds blocks that `match` found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def allocate(self, n: int) -> list[int]:
        """Holds n blocks whose content is free to be overwritten. The caller has looked at `free`."""
        if n > self.free:
            raise ValueError(f"{n} KV blocks wanted, {self.free} free")
        blocks = [self._take() for _ in range(n)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def _take(self) -> int:
        if self._unused:
            return self._unused.pop()
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block

    def remember(self, block: int, key: Key) -> None:
        """Says that a held block is full and computed, so that others may share it."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Gives blocks back, the last of the sequence first: what starts a prefix stays cached longest."""
        for block in reversed(blocks):
            if self._holders[block] == 0:
                raise ValueError(f"KV block {block} is released twice")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._unused.append(block)

    def forget(self) -> None:
        """Drops what is known about the content of every block; held blocks stay held."""
        self._unused.extend(self._cached)
        self._cached.clear()
        self._block_of.clear()
        self._key_of.clear()


def prefix_keys(tokens: Sequence[int], adapter_key: Key = b"") -> Iterator[Key]:
    """Keys of the full blocks of a prompt that a cache may hold: all of them but for the last token, which a step has
    to compute to give logits."""
    key = adapter_key
    for start in range(0, len(tokens) - KV_BLOCK, KV_BLOCK):
        key = chain_key(key, tokens[start : start + KV_BLOCK])
        yield key


def n_blocks_for(n_tokens: int) -> int:
    return -(-n_tokens // KV_BLOCK)
