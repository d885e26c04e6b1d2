"""Encoders on every executor, against their plain meaning in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.errors import ModelFileError, UnsupportedModelError
from tests.architectures.small_model import (
    F64,
    FF,
    HEAD,
    HEADS,
    KV_HEADS,
    LAYERS,
    VOCAB,
    WIDTH,
    SmallModel,
    attend,
    frequencies,
    heads,
    layer_norm,
    nmse,
    rms,
    rotate,
    silu,
    softmax,
    tokens,
)
from tests.backends.memory_file import load, one_sequence

CONTEXT = 96
EXPERTS, USED = 4, 2


def gelu(x: F64) -> F64:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def encoder(arch: str) -> SmallModel:
    model = SmallModel(arch, norm="layer", context_length=CONTEXT)
    del model.tensors["output.weight"]
    model.set_path("attention.head_count_kv", HEADS)
    model.set_path("attention.causal", False)
    model.random("token_types.weight", 2, WIDTH)
    with_bias = arch != "nomic-bert"
    for name in ["token_embd_norm", *(f"blk.{i}.{n}_output_norm" for i in range(LAYERS) for n in ("attn", "layer"))]:
        model.random(f"{name}.weight", WIDTH)
        model.random(f"{name}.bias", WIDTH)
    shapes = {"attn_output": (WIDTH, HEADS * HEAD), "ffn_up": (FF, WIDTH), "ffn_down": (WIDTH, FF)}
    if arch == "bert":
        model.random("position_embd.weight", CONTEXT, WIDTH)
        shapes |= {f"attn_{n}": (HEADS * HEAD, WIDTH) for n in "qkv"}
    else:
        model.set_path("rope.freq_base", 1000.0)
        shapes |= {"attn_qkv": (3 * HEADS * HEAD, WIDTH)}
    if arch == "nomic-bert":
        shapes |= {"ffn_gate": (FF, WIDTH)}
    for layer in range(LAYERS):
        here = dict(shapes)
        if arch == "nomic-bert-moe" and layer % 2 == 1:
            model.random(f"blk.{layer}.ffn_gate_inp.weight", EXPERTS, WIDTH)
            model.random(f"blk.{layer}.ffn_up_exps.weight", EXPERTS, FF, WIDTH)
            model.random(f"blk.{layer}.ffn_down_exps.weight", EXPERTS, WIDTH, FF)
            del here["ffn_up"], here["ffn_down"]
        for name, shape in here.items():
            model.random(f"blk.{layer}.{name}.weight", *shape)
            if with_bias:
                model.random(f"blk.{layer}.{name}.bias", shape[0])
    if arch == "nomic-bert-moe":
        model.set(moe_every_n_layers=2, expert_count=EXPERTS, expert_used_count=USED)
    return model


def expected(model: SmallModel, ids: Any) -> F64:
    """The vectors of one text's tokens, [n, WIDTH]."""
    arch = model.keys["general.architecture"]
    w = model.w

    def linear(x: F64, name: str) -> F64:
        bias = w(f"{name}.bias") if f"{name}.bias" in model.tensors else 0.0
        return x @ w(f"{name}.weight").T + bias

    def norm(x: F64, name: str) -> F64:
        return layer_norm(x, w(f"{name}.weight"), w(f"{name}.bias"))

    h = w("token_embd.weight")[list(ids)] + w("token_types.weight")[0]
    if arch == "bert":
        h = h + w("position_embd.weight")[: len(ids)]
    h = norm(h, "token_embd_norm")
    for layer in range(LAYERS):
        b = f"blk.{layer}"
        if arch == "bert":
            q, k, v = (heads(linear(h, f"{b}.attn_{n}"), HEADS) for n in "qkv")
        else:
            q, k, v = (heads(x, HEADS) for x in np.split(linear(h, f"{b}.attn_qkv"), 3, axis=1))
            q, k = (rotate(x, frequencies(base=1000.0), interleaved=False) for x in (q, k))
        seen = np.stack([softmax(q[:, n] @ k[:, n].T / np.sqrt(HEAD)) @ v[:, n] for n in range(HEADS)], axis=1)
        h = norm(h + linear(seen.reshape(len(h), -1), f"{b}.attn_output"), f"{b}.attn_output_norm")
        if f"{b}.ffn_gate_inp.weight" in model.tensors:
            shares = softmax(h @ w(f"{b}.ffn_gate_inp.weight").T)
            f = np.zeros_like(h)
            for row in range(len(h)):
                for e in np.argsort(-shares[row])[:USED]:
                    inner = gelu(w(f"{b}.ffn_up_exps.weight")[e] @ h[row])
                    f[row] += shares[row, e] * (w(f"{b}.ffn_down_exps.weight")[e] @ inner)
        elif arch == "nomic-bert":
            f = linear(silu(linear(h, f"{b}.ffn_gate")) * linear(h, f"{b}.ffn_up"), f"{b}.ffn_down")
        else:
            f = linear(gelu(linear(h, f"{b}.ffn_up")), f"{b}.ffn_down")
        h = norm(h + f, f"{b}.layer_output_norm")
    return h


@pytest.fixture(params=["numpy", "opencl", "gpu"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LoadedModel]]:
    """place(small model): it on one of the executors."""
    if request.param == "gpu":
        monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    device = "numpy" if request.param == "numpy" else "opencl"
    made = []

    def make(model: SmallModel, n_blocks: int = 12) -> Any:
        made.append(load(device, model, model.read().graph, n_blocks=n_blocks))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for model in made:
        model.close()


def batch_of(texts: Sequence[Any], wanted: Any = None) -> Batch:
    lengths = [len(text) for text in texts]
    counts = [-(-n // KV_BLOCK) for n in lengths]
    blocks = np.random.default_rng(0).permutation(sum(counts))
    tables = np.zeros((len(texts), max(counts)), np.int32)
    for i, (start, count) in enumerate(zip(np.cumsum(counts) - counts, counts, strict=True)):
        tables[i, :count] = blocks[start : start + count]
    return Batch(
        tokens=np.concatenate(texts).astype(np.int32),
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        sequences=np.repeat(np.arange(len(texts)), lengths).astype(np.int32),
        block_tables=tables,
        logit_rows=np.arange(sum(lengths), dtype=np.int32) if wanted is None else np.asarray(wanted, np.int32),
    )


@pytest.mark.parametrize("arch", ["bert", "nomic-bert", "nomic-bert-moe"])
def test_every_token_sees_all_of_its_text_and_nothing_else(place: Callable[..., LoadedModel], arch: str) -> None:
    model = encoder(arch)
    on = place(model)
    assert on.hidden_width == WIDTH
    texts = [tokens(n, seed=n) for n in (7, 70, 1, 18)]
    got = on.hidden(batch_of(texts)).copy()
    for text in texts:
        assert nmse(got[: len(text)], expected(model, text)) < 3e-6  # keys and values are kept in half precision
        got = got[len(text) :]
    # a longer text takes the same blocks: what the last batch left there plays no part
    longest = tokens(CONTEXT, seed=5)
    rows = [0, 40, CONTEXT - 1]
    some = on.hidden(batch_of([longest], wanted=rows))
    assert nmse(some, expected(model, longest)[rows]) < 3e-6


def test_a_decoder_gives_what_its_output_matrix_reads(place: Callable[..., LoadedModel]) -> None:
    """Between steps that ask for logits, in chunks, of all rows."""
    model = SmallModel("llama")
    model.attention()
    model.feed_forward()
    model.norms("attn_norm", "ffn_norm")
    on = place(model)
    counts = (HEADS, KV_HEADS, KV_HEADS)
    text = tokens(80)
    h = model.w("token_embd.weight")[text]
    for layer in range(LAYERS):
        b = f"blk.{layer}"
        n = rms(h, model.w(f"{b}.attn_norm.weight"))
        q, k, v = (heads(n @ model.w(f"{b}.attn_{x}.weight").T, c) for x, c in zip("qkv", counts, strict=True))
        q, k = (rotate(x, frequencies(), interleaved=True) for x in (q, k))
        h = h + attend(q, k, v, scale=HEAD**-0.5) @ model.w(f"{b}.attn_output.weight").T
        n = rms(h, model.w(f"{b}.ffn_norm.weight"))
        gated = silu(n @ model.w(f"{b}.ffn_gate.weight").T) * (n @ model.w(f"{b}.ffn_up.weight").T)
        h = h + gated @ model.w(f"{b}.ffn_down.weight").T
    h = rms(h, model.w("output_norm.weight"))
    logits = h @ model.w("output.weight").T

    for _ in range(3):
        hidden = [on.hidden(one_sequence(text[at : at + 40], at, np.arange(3))).copy() for at in (0, 40)]
        assert hidden[0].shape == (40, WIDTH)
        assert nmse(np.concatenate(hidden), h) < 3e-6
        whole = on.forward(one_sequence(text[40:], 40, np.arange(3)))
        assert whole.shape == (40, VOCAB)
        assert nmse(whole, logits[40:]) < 3e-6
        one = on.hidden(one_sequence(text[79:], 79, np.arange(3)))
        assert nmse(one, h[79:]) < 3e-6
        assert on.forward(one_sequence(text[:5], 0, np.arange(3), [])).shape[0] == 0


def test_positions_beyond_the_learned_ones_are_refused() -> None:
    with pytest.raises(ModelFileError, match="96 positions"):
        encoder("bert").read(97)


def test_a_missing_norm_is_named() -> None:
    model = encoder("nomic-bert")
    del model.tensors["blk.1.layer_output_norm.weight"]
    with pytest.raises(ModelFileError, match="blk.1.layer_output_norm.weight"):
        model.read()


def test_a_window_to_both_sides_is_refused() -> None:
    model = SmallModel("gemma3")
    model.set_path("attention.causal", False)
    model.set_path("attention.sliding_window", 8)
    model.attention()
    model.feed_forward()
    model.norms("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
    for layer in range(LAYERS):
        model.random(f"blk.{layer}.attn_q_norm.weight", HEAD)
        model.random(f"blk.{layer}.attn_k_norm.weight", HEAD)
    with pytest.raises(UnsupportedModelError, match="both sides"):
        model.read()
