"""What is said of a file whose keys or tensors do not fit together, or that is of no family in the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.architectures import ARCHITECTURES
from engine.errors import ModelFileError, UnsupportedModelError
from tests.architectures.small_model import FF, HEADS, KV_HEADS, LAYERS, WIDTH, SmallModel


def sound() -> SmallModel:
    m = SmallModel("llama")
    m.attention()
    m.feed_forward()
    m.norms("attn_norm", "ffn_norm")
    return m


def mixture() -> SmallModel:
    m = sound()
    m.set(expert_count=4, expert_used_count=2)
    for layer in range(LAYERS):
        m.random(f"blk.{layer}.ffn_gate_inp.weight", 4, WIDTH)
        for name, rows, columns in (("gate", FF, WIDTH), ("up", FF, WIDTH), ("down", WIDTH, FF)):
            m.random(f"blk.{layer}.ffn_{name}_exps.weight", 4, rows, columns)
    return m


def test_the_sound_ones_are_sound() -> None:
    assert sound().read().trained_context_length == 512
    assert mixture().read().graph.cache_widths() == [(16, 16)] * LAYERS


WRONG: dict[str, tuple[type[Exception], Any, str]] = {
    "block_count": (ModelFileError, 1 << 20, "block_count"),
    "embedding_length": (ModelFileError, -4, "embedding_length"),
    "context_length": (ModelFileError, "long", r"context_length must be an integer"),
    "feed_forward_length": (ModelFileError, 64, r"blk\.0\.ffn_gate\.weight.*\[48, 32\].*\[64, 32\]"),
    "attention.head_count": (ModelFileError, 0, r"attention\.head_count is 0"),
    "attention.head_count_kv": (ModelFileError, 3, r"head_count is 4.*no multiple.*head_count_kv, 3"),
    "attention.key_length": (ModelFileError, 7, r"rope\.dimension_count|attn_q\.weight"),
    "attention.value_length": (ModelFileError, 5, r"blk\.0\.attn_v\.weight"),
    "attention.layer_norm_rms_epsilon": (ModelFileError, float("nan"), "layer_norm_rms_epsilon"),
    "attention.scale": (ModelFileError, -1.0, r"attention\.scale"),
    "rope.dimension_count": (ModelFileError, 10, r"rope\.dimension_count is 10"),
    "rope.freq_base": (ModelFileError, 0.0, r"rope\.freq_base"),
    "rope.scaling.type": (UnsupportedModelError, "spiral", "'spiral'"),
    "rope.scaling.factor": (ModelFileError, -2.0, r"rope\.scaling\.factor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_key_is_named(name: str) -> None:
    kind, value, match = WRONG[name]
    m = sound()
    m.set_path(name, value)
    with pytest.raises(kind, match=match):
        m.read()


def test_layers_that_differ_are_refused_and_equal_ones_are_not() -> None:
    m = sound()
    m.set_path("attention.head_count_kv", np.array([KV_HEADS] * LAYERS))
    m.set_path("attention.head_count", np.array([HEADS] * LAYERS))
    m.read()
    m.set_path("attention.head_count_kv", np.array([2, 2, 4]))
    with pytest.raises(UnsupportedModelError, match=r"llama\.attention\.head_count_kv"):
        m.read()
    m.set_path("attention.head_count_kv", np.array([2, 2]))
    with pytest.raises(ModelFileError, match=r"head_count_kv has 2 entries where 3 are needed"):
        m.read()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.set(expert_used_count=5), r"expert_used_count is 5.*at most 4"),
        (lambda m: m.set(expert_used_count=0), r"expert_used_count is 0"),
        (lambda m: m.keys.pop("llama.expert_used_count"), r"expert_used_count is missing"),
        (lambda m: m.tensors.pop("blk.1.ffn_gate_inp.weight"), r"lacks the tensor 'blk\.1\.ffn_gate_inp\.weight'"),
        (lambda m: m.random("blk.2.ffn_up_exps.weight", 3, FF, WIDTH), r"blk\.2\.ffn_up_exps\.weight.*\[4, 48, 32\]"),
        (lambda m: m.add("rope_freqs.weight", np.array([1.0, 1.0, 0.0, 1.0])), r"rope_freqs\.weight"),
        (lambda m: m.random("rope_freqs.weight", 3), r"rope_freqs\.weight.*\[3\].*\[4\]"),
        (lambda m: m.tensors.pop("token_embd.weight"), r"token_embd\.weight"),
    ],
)
def test_a_missing_or_misshapen_part_is_named(change: Callable[[SmallModel], Any], match: str) -> None:
    m = mixture()
    change(m)
    with pytest.raises(ModelFileError, match=match):
        m.read()


@pytest.mark.parametrize(
    ("name", "near"), [("qwen2vl", "qwen2"), ("gemma4", "gemma3"), ("Llama", "llama"), ("deepseek", "deepseek2")]
)
def test_an_unknown_architecture_is_named_beside_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{name}'") as error:
        SmallModel(name).read()
    assert near in error.value.hint.split(".")[0]
    assert all(known in error.value.hint for known in ARCHITECTURES)


def test_tensors_that_nothing_reads_are_listed() -> None:
    m = sound()
    m.add("rope_freqs.weight", np.ones(4))
    m.random("blk.3.nextn.eh_proj.weight", WIDTH, 2 * WIDTH)
    m.set(block_count=LAYERS + 1, nextn_predict_layers=1)
    m.set_path("attention.head_count_kv", np.array([KV_HEADS] * (LAYERS + 1)))
    read = m.read()
    assert read.unused_tensors == ("blk.3.nextn.eh_proj.weight",)
    assert read.graph.n_layers == LAYERS
    assert read.prediction is None


def test_a_scale_beside_a_matrix_is_not_ignored() -> None:
    m = sound()
    m.random("blk.1.attn_q.scale", 1)
    with pytest.raises(UnsupportedModelError, match=r"blk\.1\.attn_q\.scale"):
        m.read()
