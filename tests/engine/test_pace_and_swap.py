"""How much of a prompt a step takes, and when blocks go to host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.batch import KV_BLOCK
from engine.pace import ALONE_S, BESIDE_ANSWERS_S, FIRST_ROWS, LEAST_ROWS, Pace
from engine.swap import HostMemory
from tests.engine.fakes import FakeModel


def measured(every_step_s: float, rows_per_s: float, max_rows: int = 512) -> Pace:
    pace = Pace(max_rows)
    for _ in range(30):
        pace.measured(1, every_step_s, waited=True)
        pace.measured(256, every_step_s + 256 / rows_per_s, waited=True)
    return pace


def test_chunks_are_as_long_as_others_can_wait() -> None:
    pace = measured(0.005, 1000.0)
    assert pace.rows_per_s == pytest.approx(1000, rel=0.01)
    assert pace.rows(beside_answers=True) == pytest.approx(1000 * BESIDE_ANSWERS_S, rel=0.05)
    assert pace.rows(beside_answers=False) == pytest.approx(1000 * ALONE_S, rel=0.05)


def test_chunks_are_neither_longer_than_a_step_nor_all_overhead() -> None:
    assert measured(0.001, 1e6).rows(beside_answers=True) == 512
    assert measured(0.001, 10.0).rows(beside_answers=True) == LEAST_ROWS
    assert measured(2.0, 50.0).rows(beside_answers=True) == pytest.approx(400, rel=0.02)  # a fifth of it is fixed
    assert Pace(512).rows(beside_answers=True) == FIRST_ROWS
    assert Pace(512).rows(beside_answers=False) == 512
    assert Pace(8).rows(beside_answers=True) == 8


def test_steps_that_nobody_waited_for_are_measured_with_the_next() -> None:
    pace = Pace(512)
    pace.measured(512, 0.0001, waited=False)
    assert not pace.rows_per_s
    pace.measured(512, 1.0, waited=True)
    assert pace.rows_per_s == pytest.approx(1024, rel=0.01)


def test_blocks_are_kept_within_the_budget_and_come_back_as_they_were() -> None:
    model = FakeModel(n_blocks=8)
    model._cache[:] = np.arange(8 * KV_BLOCK).reshape(8, KV_BLOCK)
    host = HostMemory(model, budget_bytes=3 * model.block_bytes)
    saved = host.save([4, 2], 2 * KV_BLOCK - 3, 0.0)
    assert saved is not None
    assert host.used_bytes == 2 * model.block_bytes
    assert host.save([5, 6], 2 * KV_BLOCK, 0.0) is None  # no room
    assert host.save([5], KV_BLOCK - 1, 0.0) is None  # not worth it
    host.restore(saved, [0])  # the first of them was found elsewhere
    np.testing.assert_array_equal(model._cache[0], model._cache[2])
    host.drop(saved)
    assert host.used_bytes == 0


def test_what_is_computed_faster_than_moved_is_not_moved() -> None:
    model = FakeModel(n_blocks=8)
    host = HostMemory(model)
    assert host.save([1, 2], 2 * KV_BLOCK, rows_per_s=1e12) is None
    assert host.save([1, 2], 2 * KV_BLOCK, rows_per_s=100.0) is not None


def test_too_little_host_memory_means_computing_again() -> None:
    class Full(FakeModel):
        def read_blocks(self, blocks: Any) -> Any:
            raise MemoryError

    assert HostMemory(Full()).save([1, 2], 64, 0.0) is None
