"""Small files with a layer that predicts further tokens, and that layer's arithmetic written out in float64."""

from __future__ import annotations

import numpy as np

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
    rms,
    rotate,
    silu,
)

N_EXPERTS, N_USED, EXPERT_FF = 8, 2, 16


def glm4_moe(*, normed_heads: bool = True, own: bool = True) -> SmallModel:
    """One dense layer, mixtures of experts behind it, and the last block predicts. own: with a table, a last norm and a
    head of its own, else the model's serve it."""
    m = SmallModel(
        "glm4moe",
        expert_count=N_EXPERTS,
        expert_used_count=N_USED,
        expert_feed_forward_length=EXPERT_FF,
        expert_shared_count=1,
        expert_gating_func=2,
        expert_weights_norm=True,
        expert_weights_scale=1.5,
        leading_dense_block_count=1,
    )
    m.set_path("attention.key_length", HEAD)
    m.set_path("attention.value_length", HEAD)
    m.set_path("rope.dimension_count", HEAD // 2)
    m.random("output_norm.weight", WIDTH)
    for layer in range(LAYERS + 1):
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            m.random(f"blk.{layer}.attn_{name}.weight", rows * HEAD, WIDTH)
            m.random(f"blk.{layer}.attn_{name}.bias", rows * HEAD)
        m.random(f"blk.{layer}.attn_output.weight", WIDTH, HEADS * HEAD)
        for name in ("attn_norm", "post_attention_norm"):
            m.random(f"blk.{layer}.{name}.weight", WIDTH)
        if normed_heads:
            m.random(f"blk.{layer}.attn_q_norm.weight", HEAD)
            m.random(f"blk.{layer}.attn_k_norm.weight", HEAD)
    for name, rows, columns in (("gate", FF, WIDTH), ("up", FF, WIDTH), ("down", WIDTH, FF)):
        m.random(f"blk.0.ffn_{name}.weight", rows, columns)
    for layer in range(1, LAYERS + 1):
        mixture(m, layer)
    nextn(m, own=own)
    return m


def mixture(m: SmallModel, layer: int) -> None:
    m.random(f"blk.{layer}.ffn_gate_inp.weight", N_EXPERTS, WIDTH)
    m.random(f"blk.{layer}.exp_probs_b.bias", N_EXPERTS)
    for name, rows, columns in (("gate", EXPERT_FF, WIDTH), ("up", EXPERT_FF, WIDTH), ("down", WIDTH, EXPERT_FF)):
        m.random(f"blk.{layer}.ffn_{name}_exps.weight", N_EXPERTS, rows, columns)
        m.random(f"blk.{layer}.ffn_{name}_shexp.weight", rows, columns)


def nextn(m: SmallModel, *, own: bool) -> None:
    """What a layer that predicts has beside its block."""
    m.set(block_count=LAYERS + 1, nextn_predict_layers=1)
    name = f"blk.{LAYERS}.nextn"
    m.random(f"{name}.enorm.weight", WIDTH)
    m.random(f"{name}.hnorm.weight", WIDTH)
    m.random(f"{name}.eh_proj.weight", WIDTH, 2 * WIDTH)
    if own:
        m.random(f"{name}.embed_tokens.weight", VOCAB, WIDTH)
        m.random(f"{name}.shared_head_norm.weight", WIDTH)
        m.random(f"{name}.shared_head_head.weight", VOCAB, WIDTH)


def linear(m: SmallModel, x: F64, name: str) -> F64:
    out = x @ m.w(f"{name}.weight").T
    return out + m.w(f"{name}.bias") if f"{name}.bias" in m.tensors else out


def mlp(m: SmallModel, x: F64, layer: int, kind: str = "") -> F64:
    gated = silu(linear(m, x, f"blk.{layer}.ffn_gate{kind}")) * linear(m, x, f"blk.{layer}.ffn_up{kind}")
    return linear(m, gated, f"blk.{layer}.ffn_down{kind}")


def experts(m: SmallModel, x: F64, layer: int, scale: float = 1.5) -> F64:
    """Glm4MoeMoE of the transformers library with one group: a sigmoid, the bias for choosing only, weights that are
    made to add up and scaled, and the shared expert."""
    gate, up, down = (m.w(f"blk.{layer}.ffn_{name}_exps.weight") for name in ("gate", "up", "down"))
    out = mlp(m, x, layer, "_shexp")
    for row, vector in enumerate(x):
        score = 1 / (1 + np.exp(-m.w(f"blk.{layer}.ffn_gate_inp.weight") @ vector))
        chosen = np.argsort(-(score + m.w(f"blk.{layer}.exp_probs_b.bias")))[:N_USED]
        for e in chosen:
            out[row] += scale * score[e] / score[chosen].sum() * (down[e] @ (silu(gate[e] @ vector) * (up[e] @ vector)))
    return out


def glm_block(m: SmallModel, h: F64, layer: int) -> F64:
    n = rms(h, m.w(f"blk.{layer}.attn_norm.weight"))
    q, k, v = (linear(m, n, f"blk.{layer}.attn_{name}") for name in "qkv")
    q, k, v = heads(q, HEADS), heads(k, KV_HEADS), heads(v, KV_HEADS)
    if f"blk.{layer}.attn_q_norm.weight" in m.tensors:
        q = rms(q, m.w(f"blk.{layer}.attn_q_norm.weight"))
        k = rms(k, m.w(f"blk.{layer}.attn_k_norm.weight"))
    q, k = (rotate(x, frequencies(HEAD // 2), interleaved=False) for x in (q, k))
    h = h + linear(m, attend(q, k, v, scale=HEAD**-0.5), f"blk.{layer}.attn_output")
    n = rms(h, m.w(f"blk.{layer}.post_attention_norm.weight"))
    return h + (mlp(m, n, layer) if layer == 0 else experts(m, n, layer))


def glm_rows(m: SmallModel, ids: np.ndarray) -> F64:
    """What the decoder makes of each position, after its last norm."""
    h = m.w("token_embd.weight")[ids]
    for layer in range(LAYERS):
        h = glm_block(m, h, layer)
    return rms(h, m.w("output_norm.weight"))


def layer_input(m: SmallModel, h: F64, following: np.ndarray) -> F64:
    """h [positions, width] of the decoder; following: for each the token after it."""
    name = f"blk.{LAYERS}.nextn"
    table = m.w(f"{name}.embed_tokens.weight" if f"{name}.embed_tokens.weight" in m.tensors else "token_embd.weight")
    e = rms(table[following], m.w(f"{name}.enorm.weight"))
    return linear(m, np.concatenate([e, rms(h, m.w(f"{name}.hnorm.weight"))], axis=1), f"{name}.eh_proj")


def layer_output(m: SmallModel, x: F64) -> tuple[F64, F64]:
    """(rows after the layer's last norm, logits) of what its block gave."""
    name = f"blk.{LAYERS}.nextn"
    own = f"{name}.shared_head_norm.weight" in m.tensors
    x = rms(x, m.w(f"{name}.shared_head_norm.weight" if own else "output_norm.weight"))
    return x, x @ m.w(f"{name}.shared_head_head.weight" if own else "output.weight").T
