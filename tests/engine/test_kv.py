from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.batch import KV_BLOCK
from engine.kv import BlockManager, Key, chain_key

N_BLOCKS = 12


def block(letter: int) -> list[int]:
    return [letter] * KV_BLOCK


def filled(manager: BlockManager, letters: list[int], adapter_key: Key = b"") -> list[int]:
    """Blocks of a sequence that computed these letters, a block each."""
    tokens = [token for letter in letters for token in block(letter)]
    blocks = manager.match([*tokens, 0], adapter_key)
    manager.share(blocks)
    blocks = blocks + manager.allocate(len(letters) - len(blocks))
    key = adapter_key
    for letter, physical in zip(letters, blocks, strict=True):
        key = chain_key(key, block(letter))
        manager.remember(physical, key)
    return blocks


def test_a_prefix_is_found_while_it_is_held_and_after_it_was_released() -> None:
    manager = BlockManager(4)
    blocks = filled(manager, [1, 2])
    tokens = block(1) + block(2) + block(3)
    assert manager.match(tokens) == blocks
    manager.release(blocks)
    assert manager.match(tokens) == blocks
    assert manager.free == 4


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    manager = BlockManager(4)
    blocks = filled(manager, [1, 2])
    assert manager.match(block(1) + block(2)) == blocks[:1]


def test_the_same_block_after_another_beginning_is_not_the_same() -> None:
    manager = BlockManager(6)
    filled(manager, [1, 2])
    assert manager.match([*block(2), 0]) == []
    assert manager.match(block(3) + block(2) + [0]) == []


def test_adapters_share_nothing_with_the_bare_model() -> None:
    manager = BlockManager(6)
    blocks = filled(manager, [1], b"pirate")
    assert manager.match([*block(1), 0]) == []
    assert manager.match([*block(1), 0], b"pirate") == blocks


def test_the_prefix_given_up_longest_ago_goes_first_and_from_its_end() -> None:
    manager = BlockManager(4)
    old, new = filled(manager, [1, 2]), filled(manager, [3, 4])
    manager.release(old)
    manager.release(new)
    taken = manager.allocate(1)
    assert taken == old[1:]
    assert manager.match(block(1) + block(2) + [0]) == old[:1]
    assert manager.match(block(3) + block(4) + [0]) == new


def test_using_a_cached_prefix_makes_it_the_youngest() -> None:
    manager = BlockManager(4)
    old, new = filled(manager, [1, 2]), filled(manager, [3, 4])
    manager.release(old)
    manager.release(new)
    manager.release(filled(manager, [1, 2]))
    assert set(manager.allocate(2)) == set(new)


def test_a_double_release_is_an_error() -> None:
    manager = BlockManager(2)
    blocks = manager.allocate(1)
    manager.release(blocks)
    with pytest.raises(ValueError, match="twice"):
        manager.release(blocks)


def test_more_than_there_is_is_an_error_that_takes_nothing() -> None:
    manager = BlockManager(2)
    with pytest.raises(ValueError, match="3 KV blocks wanted, 2 free"):
        manager.allocate(3)
    assert manager.free == 2


class Blocks(RuleBasedStateMachine):
    """Sequences over a small alphabet of blocks come, grow and go; a simple model counts who holds what."""

    held: Bundle[tuple[list[int], list[int]]] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(N_BLOCKS)
        self.holdings: list[list[int]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(target=held, letters=st.lists(st.integers(0, 2), min_size=1, max_size=4), computed=st.booleans())
    def join(self, letters: list[int], computed: bool) -> tuple[list[int], list[int]]:
        manager = self.manager
        tokens = [token for letter in letters for token in block(letter)] + [9]
        known = manager.match(tokens)
        for n, physical in enumerate(known, 1):  # what the cache claims to hold is what was written there
            assert self.content[physical] == tuple(letters[:n])
        wanted = len(letters) - len(known)
        if wanted > manager.free - manager.n_cached(known):
            return ([], [])
        manager.share(known)
        new = manager.allocate(wanted)
        held_by_others = {b for blocks in self.holdings for b in blocks}
        assert not held_by_others & set(new)
        assert len(set(new) | set(known)) == len(letters)
        blocks, key = known + new, b""
        for n, (letter, physical) in enumerate(zip(letters, blocks, strict=True), 1):
            if physical in new:
                self.content[physical] = tuple(letters[:n]) if computed else ()
            key = chain_key(key, block(letter))
            if computed:
                manager.remember(physical, key)
        self.holdings.append(blocks)
        return (blocks, letters)

    @rule(one=consumes(held))
    def leave(self, one: tuple[list[int], list[int]]) -> None:
        if one[0]:
            self.holdings.remove(one[0])
            self.manager.release(one[0])

    @rule()
    def forget(self) -> None:
        self.manager.forget()

    @invariant()
    def every_block_is_held_or_free(self) -> None:
        for physical in range(N_BLOCKS):
            assert self.manager.holders(physical) == sum(physical in blocks for blocks in self.holdings)
        held = {b for blocks in self.holdings for b in blocks}
        assert self.manager.free == N_BLOCKS - len(held)

    def teardown(self) -> None:
        for blocks in self.holdings:
            self.manager.release(blocks)
        assert sorted(self.manager.allocate(N_BLOCKS)) == list(range(N_BLOCKS))


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
