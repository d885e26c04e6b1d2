"""What adapters add, against models into whose weights the same was merged, on each executor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters import Adapter, AdapterBase, LowRank
from engine.adapters.describe import describe
from engine.adapters.runs import AdapterSet
from engine.batch import Batch
from tests.adapters.rounding import as_kept
from tests.architectures.small_model import SmallModel, nmse, tokens
from tests.backends.memory_file import load


def small(arch: str, seed: int = 0) -> SmallModel:
    model = SmallModel(arch, seed=seed)
    model.attention()
    if arch == "qwen2moe":  # experts, their router, and one more expert that all rows share
        model.set(expert_count=6, expert_used_count=2, expert_feed_forward_length=48)
        for layer in range(3):
            model.random(f"blk.{layer}.ffn_gate_inp.weight", 6, 32)
            model.random(f"blk.{layer}.ffn_gate_inp_shexp.weight", 1, 32)
            for name, shape in (("gate", (48, 32)), ("up", (48, 32)), ("down", (32, 48))):
                model.random(f"blk.{layer}.ffn_{name}_exps.weight", 6, *shape)
                model.random(f"blk.{layer}.ffn_{name}_shexp.weight", *shape)
    elif arch == "phi3":
        for layer in range(3):
            model.random(f"blk.{layer}.attn_qkv.weight", 64, 32)
            model.random(f"blk.{layer}.ffn_up.weight", 96, 32)
            model.random(f"blk.{layer}.ffn_down.weight", 32, 48)
    else:
        model.feed_forward()
    model.norms("attn_norm", "ffn_norm")
    return model


def adapter_for(model: SmallModel, seed: int, rank: int, only: str = "") -> Adapter:
    """Acts on every matrix of the model whose name holds `only`."""
    random = np.random.default_rng(seed)
    matrices = {}
    file: Any = model
    base = AdapterBase.of(file, file.read().graph)
    known = {*base.matrices, *base.tables}
    for name, info in model.tensors.items():
        if len(info.shape) < 2 or only not in name or name.removesuffix(".weight") not in known:
            continue
        *stack, rows, columns = info.shape
        a = random.standard_normal((*stack, rank, columns))
        b = random.standard_normal((*stack, rows, rank)) * 0.3
        if name == "token_embd.weight":
            a, b = random.standard_normal((rows, rank)), random.standard_normal((columns, rank)) * 0.3
        low = LowRank((a / np.sqrt(columns)).astype(np.float32), (b / rank).astype(np.float32), 1.5)
        matrices[name.removesuffix(".weight")] = low
    info_ = describe(
        Path("random"), matrices, name="", kind="gguf", architecture="", base_model="", alpha=1, size_bytes=1
    )
    return Adapter(info_, matrices, from_peft=False)


def merged(arch: str, adapters: list[tuple[Adapter, float]], as_in: Any = None) -> SmallModel:
    """as_in: a loaded model; the adapters' numbers are what it keeps of them."""
    model = small(arch)
    for adapter, strength in adapters:
        for name, low in adapter.matrices.items():
            low = as_kept(low, as_in, name == "token_embd")
            delta = low.a @ low.b.T if name == "token_embd" else low.b @ low.a
            model.add(f"{name}.weight", model.w(f"{name}.weight") + strength * low.scale * delta)
    return model


class Loaded:
    def __init__(self, arch: str, device: str) -> None:
        file: Any = small(arch)
        graph = file.read().graph
        self.base = AdapterBase.of(file, graph)
        self.model: Any = load(device, file, graph, n_blocks=64)

    def add(self, adapter: Adapter) -> int:
        number: int = self.model.add_adapter(self.base.bind(adapter))
        return number

    def run(self, sets: list[AdapterSet], text: np.ndarray[Any, np.dtype[np.int32]], last: int = 0) -> list[Any]:
        """The logits of the same text in one batch for each of the sets; last: only those of so many tokens."""
        n, m = len(text), len(sets)
        wanted = np.concatenate([np.arange(i * n + (n - last if last else 0), (i + 1) * n) for i in range(m)])
        batch = Batch(
            tokens=np.tile(text, m),
            positions=np.tile(np.arange(n, dtype=np.int32), m),
            sequences=np.repeat(np.arange(m, dtype=np.int32), n),
            block_tables=np.arange(2 * m, dtype=np.int32).reshape(m, 2),
            logit_rows=wanted.astype(np.int32),
            adapters=tuple(sets),
        )
        return np.split(self.model.forward(batch).copy(), m)


@pytest.fixture
def llama(device: str) -> Iterator[Loaded]:
    loaded = Loaded("llama", device)
    yield loaded
    loaded.model.close()


TOLERANCE = {"numpy": 1e-10, "opencl": 1e-5}

OF_BYTES = 1e-4
"""Where adapters whose numbers are kept in 8 bits add as much as the model computes without them."""


@pytest.mark.parametrize("arch", ["llama", "phi3", "qwen2moe"])
def test_adapters_on_every_matrix_act_as_if_merged(device: str, arch: str) -> None:
    """Embedding, output, matrices by themselves, several in one, stacks for experts; a rank above and one below 16;
    two at once."""
    loaded = Loaded(arch, device)
    first, second = adapter_for(small(arch), 1, 5), adapter_for(small(arch), 2, 20)
    a, b = loaded.add(first), loaded.add(second)
    text = tokens(37)
    got = loaded.run([(), ((a, 1.0),), ((b, -0.5),), ((a, 0.7), (b, 1.0))], text)
    for logits, acting in zip(got, ([], [(first, 1.0)], [(second, -0.5)], [(first, 0.7), (second, 1.0)]), strict=True):
        expected = merged(arch, acting, loaded.model).logits(text).astype(np.float64)
        assert nmse(logits, expected) < TOLERANCE[device]
        exact = merged(arch, acting).logits(text).astype(np.float64)
        assert nmse(logits, exact) < OF_BYTES
    loaded.model.close()


@pytest.mark.parametrize("only", ["token_embd", "output", "attn_v", "ffn_down"])
def test_an_adapter_on_one_kind_of_matrix_leaves_the_others_alone(llama: Loaded, device: str, only: str) -> None:
    adapter = adapter_for(small("llama"), 3, 8, only)
    text = tokens(9)
    (got,) = llama.run([((llama.add(adapter), 1.0),)], text)
    expected = merged("llama", [(adapter, 1.0)], llama.model).logits(text).astype(np.float64)
    assert nmse(got, expected) < TOLERANCE[device]


def test_the_size_of_a_and_b_alone_does_not_matter(llama: Loaded, device: str) -> None:
    adapter = adapter_for(small("llama"), 4, 8)
    matrices = {
        name: replace(low, a=low.a * np.float32(2.0**-40), b=low.b * np.float32(2.0**40))
        for name, low in adapter.matrices.items()
    }
    numbers = llama.add(adapter), llama.add(replace(adapter, matrices=matrices))
    one, other = llama.run([((number, 1.0),) for number in numbers], tokens(9))
    assert nmse(other, one.astype(np.float64)) < 1e-10


def test_a_row_without_adapters_is_bit_for_bit_the_base_whatever_the_others_have(llama: Loaded) -> None:
    numbers = [llama.add(adapter_for(small("llama"), seed, 8)) for seed in range(3)]
    text = tokens(20)
    base = llama.run([()] * 4, text)
    mixed = llama.run([(), ((numbers[0], 1.0),), (), ((numbers[1], 2.0), (numbers[2], 1.0))], text)
    assert np.array_equal(mixed[0], base[0])
    assert np.array_equal(mixed[2], base[2])
    assert not np.array_equal(mixed[1], base[1])
    for number in numbers:
        llama.model.remove_adapter(number)
    assert np.array_equal(llama.run([()] * 4, text)[3], base[3])


def test_a_row_with_adapters_is_the_same_alone_and_among_others(llama: Loaded, device: str) -> None:
    a, b = (llama.add(adapter_for(small("llama"), seed, 8)) for seed in (1, 2))
    text = tokens(11)
    sets: list[AdapterSet] = [((a, 1.0),), ((b, 0.5),), ((a, 1.0), (b, 0.5)), ()]
    mixed = llama.run(sets * 2, text)
    for acting, logits in zip(sets * 2, mixed, strict=True):
        (alone,) = llama.run([acting], text)
        if device == "numpy":  # whose products depend on how many rows there are
            assert np.allclose(alone, logits, atol=1e-4)
        else:
            assert np.array_equal(alone, logits)
