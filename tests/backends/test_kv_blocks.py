"""KV blocks read to host memory and written back, into other blocks, hold what they held."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from engine.batch import KV_BLOCK, LoadedModel
from tests.architectures.small_model import SmallModel, tokens
from tests.backends.memory_file import load, one_sequence


def small_model(device: str, n_blocks: int = 12) -> LoadedModel:
    file = SmallModel("llama", rope__freq_base=10000.0)
    file.attention()
    file.feed_forward()
    file.norms("attn_norm", "ffn_norm")
    graph = file.read(n_blocks * KV_BLOCK).graph
    return load(device, cast("Any", file), graph, n_blocks=n_blocks)


@pytest.fixture(params=["numpy", "opencl", "simt"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    if request.param == "simt":
        monkeypatch.setenv("REALM_EXECUTOR", "gpu")
        return small_model("opencl")
    return small_model(request.param)


def test_blocks_that_were_read_can_be_written_elsewhere(model: LoadedModel) -> None:
    text = tokens(5 * KV_BLOCK + 7)
    whole = model.forward(one_sequence(text, blocks=[3, 4, 8, 0, 1, 6])).copy()
    n = 5 * KV_BLOCK
    data = model.read_blocks([3, 4, 8, 0, 1])
    assert data.shape == (5, model.block_bytes)
    assert data.dtype == np.uint8
    elsewhere = [7, 2, 9, 10, 11]
    model.write_blocks(elsewhere, data)
    model.write_blocks([3, 4, 8, 0, 1], np.full_like(data, 0x3C))
    again = model.forward(one_sequence(text[n:], start=n, blocks=[*elsewhere, 6]))
    np.testing.assert_allclose(again, whole[n:], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(model.read_blocks(elsewhere), data)
    model.close()


def test_no_blocks_are_no_bytes(model: LoadedModel) -> None:
    assert model.read_blocks([]).shape == (0, model.block_bytes)
    model.write_blocks([], np.empty((0, model.block_bytes), np.uint8))
    model.close()
