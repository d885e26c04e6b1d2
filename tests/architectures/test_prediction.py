"""Layers that predict further tokens, against their definition written out in float64."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from engine.batch import KeepsRows, PartModel
from engine.devices import list_devices
from engine.measure.logits import sequence_batch
from tests.architectures.predicting import glm4_moe, glm_block, glm_rows, layer_input, layer_output, nextn
from tests.architectures.small_model import LAYERS, VOCAB, WIDTH, SmallModel, nmse, tokens
from tests.architectures.test_definitions import deepseek, deepseek_block
from tests.backends.memory_file import load

EXACT = {"numpy": 1e-10, "opencl": 1e-5, "simt": 1e-5}
OPENCL = any(d.id.startswith("opencl") and not d.problem for d in list_devices())


@pytest.fixture(params=["numpy", *(["opencl", "simt"] if OPENCL else [])])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "simt":
        monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    return str(request.param)


def models(m: SmallModel, device: str) -> tuple[PartModel, PartModel]:
    """The model, and its layer."""
    read = m.read()
    assert read.prediction is not None
    assert not [name for name in read.unused_tensors if "nextn" in name]
    device = "opencl" if device == "simt" else device
    return tuple(load(device, cast("Any", m), graph, n_blocks=16) for graph in (read.graph, read.prediction))  # type: ignore[return-value]


@pytest.mark.parametrize("normed_heads", [False, True])
def test_glm4_moe(normed_heads: bool) -> None:
    m, ids = glm4_moe(normed_heads=normed_heads), tokens()
    want = glm_rows(m, ids) @ m.w("output.weight").T
    assert nmse(m.logits(ids), want) < EXACT["numpy"]
    assert nmse(m.logits(ids, rows=7), want) < EXACT["numpy"]


@pytest.mark.parametrize("own", [False, True])
def test_the_layer_of_a_glm4_moe(own: bool, device: str) -> None:
    """In chunks, the rows of the model passed on to its layer; then on from what the layer made itself."""
    m, ids = glm4_moe(own=own), tokens(41)
    decoder, layer = models(m, device)
    assert isinstance(decoder, KeepsRows)
    assert isinstance(layer, KeepsRows)
    want_rows = glm_rows(m, ids[:-1])
    got, rows = [], []
    for start in range(0, 40, 8):
        wanted = np.array([7] if start % 16 else [], np.int32)
        logits = decoder.forward(sequence_batch(ids[:-1], start, start + 8, wanted)).copy()
        rows.append(decoder.kept().copy())
        assert rows[-1].shape == (8, WIDTH)
        if len(wanted):
            assert nmse(logits, want_rows[start + 7 : start + 8] @ m.w("output.weight").T) < EXACT[device]
        batch = sequence_batch(ids[1:], start, start + 8, np.arange(8, dtype=np.int32))
        got.append(layer.forward(batch, rows[-1]).copy())
        made = layer.kept()[-1:].copy()
    assert nmse(np.concatenate(rows), want_rows) < EXACT[device]
    x = layer_input(m, want_rows, ids[1:])
    want_made, want = layer_output(m, glm_block(m, x, LAYERS))
    assert nmse(np.concatenate(got), want) < EXACT[device]
    assert nmse(made, want_made[-1:]) < EXACT[device]

    guess = np.append(ids, want[-1].argmax()).astype(np.int32)
    on = layer.forward(sequence_batch(guess[1:], 40, 41, np.zeros(1, np.int32)), made)
    x = np.concatenate([x, layer_input(m, want_made[-1:], guess[-1:])])
    assert nmse(on, layer_output(m, glm_block(m, x, LAYERS))[1][-1:]) < EXACT[device]
    for model in (decoder, layer):
        model.close()


def test_rows_are_kept_of_a_step_that_wants_many_logits(device: str) -> None:
    """More than an executor computes at a time."""
    m, ids = glm4_moe(), tokens(150)
    decoder, _ = models(m, device)
    assert isinstance(decoder, KeepsRows)
    decoder.forward(sequence_batch(ids, 0, 150, np.arange(150, dtype=np.int32)))
    assert nmse(decoder.kept(), glm_rows(m, ids)) < EXACT[device]
    decoder.close()


@pytest.mark.parametrize("absorbed", [False, True])
def test_the_layer_of_a_deepseek(absorbed: bool) -> None:
    m, ids = deepseek(absorbed=absorbed, yarn=False, layers=LAYERS + 1), tokens(31)
    nextn(m, own=False)
    decoder, layer = models(m, "numpy")
    assert isinstance(decoder, KeepsRows)
    everything = np.arange(30, dtype=np.int32)
    decoder.forward(sequence_batch(ids[:-1], 0, 30, everything))
    rows = decoder.kept()
    logits = layer.forward(sequence_batch(ids[1:], 0, 30, everything), rows)
    block = deepseek_block(yarn=False)
    x = block(m, layer_input(m, rows.astype(np.float64), ids[1:]), LAYERS)
    assert nmse(logits, layer_output(m, x)[1]) < EXACT["numpy"]


@pytest.mark.parametrize("missing", ["nextn.eh_proj", "nextn.hnorm", "attn_k", "ffn_up_exps"])
def test_an_incomplete_layer_is_left_out_with_a_sentence(missing: str) -> None:
    m, ids = glm4_moe(), tokens()
    want = m.logits(ids)
    del m.tensors[f"blk.{LAYERS}.{missing}.weight"]
    read = m.read()
    assert read.prediction is None
    assert read.graph.kept is None
    assert f"blk.{LAYERS}.{missing}.weight" in read.no_prediction
    assert f"blk.{LAYERS}.nextn.enorm.weight" in read.unused_tensors
    assert nmse(m.logits(ids), want.astype(np.float64)) < EXACT["numpy"]


def test_a_layer_of_another_shape_is_left_out_with_a_sentence() -> None:
    m = glm4_moe()
    m.random(f"blk.{LAYERS}.nextn.shared_head_head.weight", VOCAB - 1, WIDTH)
    read = m.read()
    assert read.prediction is None
    assert "shared_head_head" in read.no_prediction
