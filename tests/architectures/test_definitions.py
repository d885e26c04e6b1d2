"""Families and variants without a tiny model, against their definition written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.architectures.small_model import (
    F64,
    FF,
    HEAD,
    HEADS,
    KV_HEADS,
    LAYERS,
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

EXACT = 1e-10


def check(
    model: SmallModel, expected: Callable[[SmallModel, F64], F64], *, count: int = 40, context: int = 512
) -> None:
    """expected: from the embedded tokens [positions, WIDTH] to logits."""
    ids = tokens(count)
    want = expected(model, model.w("token_embd.weight")[ids])
    assert nmse(model.logits(ids, context), want) < EXACT
    assert nmse(model.logits(ids, context, rows=7), want) < EXACT


def linear(m: SmallModel, x: F64, name: str) -> F64:
    out = x @ m.w(f"{name}.weight").T
    return out + m.w(f"{name}.bias") if f"{name}.bias" in m.tensors else out


def project(m: SmallModel, x: F64, layer: int) -> tuple[F64, F64, F64]:
    q, k, v = (linear(m, x, f"blk.{layer}.attn_{name}") for name in "qkv")
    return heads(q, HEADS), heads(k, KV_HEADS), heads(v, KV_HEADS)


def mlp(m: SmallModel, x: F64, layer: int) -> F64:
    gated = silu(linear(m, x, f"blk.{layer}.ffn_gate")) * linear(m, x, f"blk.{layer}.ffn_up")
    return linear(m, gated, f"blk.{layer}.ffn_down")


def rms_named(m: SmallModel, x: F64, name: str) -> F64:
    return rms(x, m.w(f"{name}.weight"))


def layer_named(m: SmallModel, x: F64, name: str) -> F64:
    return layer_norm(x, m.w(f"{name}.weight"), m.w(f"{name}.bias") if f"{name}.bias" in m.tensors else 0.0)


def llama_like(
    m: SmallModel,
    h: F64,
    *,
    rope: Callable[[F64], F64] | None = None,
    feed_forward: Callable[[SmallModel, F64, int], F64] = mlp,
    scale: float = 1 / math.sqrt(HEAD),
    residual: float = 1.0,
) -> F64:
    """The normed rows that the output matrix reads."""
    rope = rope or (lambda x: rotate(x, frequencies(), interleaved=True))
    for layer in range(LAYERS):
        q, k, v = project(m, rms_named(m, h, f"blk.{layer}.attn_norm"), layer)
        a = attend(rope(q), rope(k), v, scale=scale)
        h = h + residual * linear(m, a, f"blk.{layer}.attn_output")
        h = h + residual * feed_forward(m, rms_named(m, h, f"blk.{layer}.ffn_norm"), layer)
    return rms_named(m, h, "output_norm")


def test_mixtral() -> None:
    n_experts, n_used = 5, 2
    m = SmallModel("llama", expert_count=n_experts, expert_used_count=n_used)
    m.attention()
    m.norms("attn_norm", "ffn_norm")
    for layer in range(LAYERS):
        m.random(f"blk.{layer}.ffn_gate_inp.weight", n_experts, WIDTH)
        m.random(f"blk.{layer}.ffn_gate_exps.weight", n_experts, FF, WIDTH)
        m.random(f"blk.{layer}.ffn_up_exps.weight", n_experts, FF, WIDTH)
        m.random(f"blk.{layer}.ffn_down_exps.weight", n_experts, WIDTH, FF)

    def mixture(m: SmallModel, x: F64, layer: int) -> F64:
        gate, up, down = (m.w(f"blk.{layer}.ffn_{name}_exps.weight") for name in ("gate", "up", "down"))
        out = np.zeros_like(x)
        for row, vector in enumerate(x):
            probabilities = softmax(m.w(f"blk.{layer}.ffn_gate_inp.weight") @ vector)
            chosen = sorted(range(n_experts), key=lambda e: -probabilities[e])[:n_used]
            for e in chosen:
                weight = probabilities[e] / sum(probabilities[c] for c in chosen)
                out[row] += weight * (down[e] @ (silu(gate[e] @ vector) * (up[e] @ vector)))
        return out

    check(m, lambda m, h: llama_like(m, h, feed_forward=mixture) @ m.w("output.weight").T)


def test_granite() -> None:
    m = SmallModel("granite", logit_scale=4.0, residual_scale=0.35, embedding_scale=6.0)
    m.set_path("attention.scale", 0.21)
    del m.tensors["output.weight"]  # tied
    m.attention()
    m.feed_forward()
    m.norms("attn_norm", "ffn_norm")
    check(m, lambda m, h: llama_like(m, 6.0 * h, scale=0.21, residual=0.35) @ m.w("token_embd.weight").T / 4.0)


def test_linear_rope_scaling_applies_unless_the_type_is_none() -> None:
    m = SmallModel("llama")
    m.attention()
    m.feed_forward()
    m.norms("attn_norm", "ffn_norm")
    m.set_path("rope.scaling.factor", 4.0)
    slow = lambda x: rotate(x, frequencies() / 4, interleaved=True)  # noqa: E731
    check(m, lambda m, h: llama_like(m, h, rope=slow) @ m.w("output.weight").T)
    m.set_path("rope.scaling.type", "none")
    check(m, lambda m, h: llama_like(m, h) @ m.w("output.weight").T)


@pytest.mark.parametrize("window", [0, 9])
def test_olmo2(window: int) -> None:
    """With a window (OLMo 3): local layers 0 to 2 of each four rotate without the scaling of the others."""
    m = SmallModel("olmo2", block_count=LAYERS)
    m.set_path("rope.scaling.type", "linear")
    m.set_path("rope.scaling.factor", 2.0)
    if window:
        m.set_path("attention.sliding_window", window)
        m.set_path("attention.sliding_window_pattern", 2)
    m.attention()
    m.feed_forward()
    m.norms("post_attention_norm", "post_ffw_norm")
    for layer in range(LAYERS):
        m.random(f"blk.{layer}.attn_q_norm.weight", HEADS * HEAD)
        m.random(f"blk.{layer}.attn_k_norm.weight", KV_HEADS * HEAD)

    def expected(m: SmallModel, h: F64) -> F64:
        for layer in range(LAYERS):
            local = window > 0 and layer % 2 == 0
            turn = frequencies() if local else frequencies() / 2
            q = rms_named(m, linear(m, h, f"blk.{layer}.attn_q"), f"blk.{layer}.attn_q_norm")
            k = rms_named(m, linear(m, h, f"blk.{layer}.attn_k"), f"blk.{layer}.attn_k_norm")
            v = linear(m, h, f"blk.{layer}.attn_v")
            a = attend(
                rotate(heads(q, HEADS), turn, interleaved=False),
                rotate(heads(k, KV_HEADS), turn, interleaved=False),
                heads(v, KV_HEADS),
                scale=1 / math.sqrt(HEAD),
                window=window if local else None,
            )
            h = h + rms_named(m, linear(m, a, f"blk.{layer}.attn_output"), f"blk.{layer}.post_attention_norm")
            h = h + rms_named(m, mlp(m, h, layer), f"blk.{layer}.post_ffw_norm")
        return rms_named(m, h, "output_norm") @ m.w("output.weight").T

    check(m, expected)


@pytest.mark.parametrize("parallel", [False, True])
def test_stablelm(parallel: bool) -> None:
    """A quarter of each head rotates; the 12B model norms heads and runs both blocks on the same rows."""
    n_rotated = 2
    m = SmallModel("stablelm", norm="layer")
    m.set_path("rope.dimension_count", n_rotated)
    m.attention(bias=not parallel)
    m.feed_forward()
    m.norms("attn_norm", *([] if parallel else ["ffn_norm"]), bias=True)
    if parallel:
        for layer in range(LAYERS):
            m.random(f"blk.{layer}.attn_q_norm.weight", HEADS, HEAD)
            m.random(f"blk.{layer}.attn_k_norm.weight", KV_HEADS, HEAD)

    def expected(m: SmallModel, h: F64) -> F64:
        for layer in range(LAYERS):
            n = layer_named(m, h, f"blk.{layer}.attn_norm")
            q, k, v = project(m, n, layer)
            if parallel:
                q = layer_norm(q, m.w(f"blk.{layer}.attn_q_norm.weight"))
                k = layer_norm(k, m.w(f"blk.{layer}.attn_k_norm.weight"))
            q, k = (rotate(x, frequencies(n_rotated), interleaved=False) for x in (q, k))
            h = h + linear(m, attend(q, k, v, scale=1 / math.sqrt(HEAD)), f"blk.{layer}.attn_output")
            h = h + mlp(m, n if parallel else layer_named(m, h, f"blk.{layer}.ffn_norm"), layer)
        return layer_named(m, h, "output_norm") @ m.w("output.weight").T

    check(m, expected)


def test_command_r_plus() -> None:
    """The large model's norms of heads; the small one is among the tiny models."""
    m = SmallModel("command-r", norm="layer", logit_scale=0.25)
    del m.tensors["output.weight"]
    m.attention()
    m.feed_forward()
    m.norms("attn_norm")
    for layer in range(LAYERS):
        m.random(f"blk.{layer}.attn_q_norm.weight", HEADS, HEAD)
        m.random(f"blk.{layer}.attn_k_norm.weight", KV_HEADS, HEAD)

    def expected(m: SmallModel, h: F64) -> F64:
        for layer in range(LAYERS):
            n = layer_named(m, h, f"blk.{layer}.attn_norm")
            q, k, v = project(m, n, layer)
            q = rotate(layer_norm(q, m.w(f"blk.{layer}.attn_q_norm.weight")), frequencies(), interleaved=True)
            k = rotate(layer_norm(k, m.w(f"blk.{layer}.attn_k_norm.weight")), frequencies(), interleaved=True)
            a = linear(m, attend(q, k, v, scale=1 / math.sqrt(HEAD)), f"blk.{layer}.attn_output")
            h = h + a + mlp(m, n, layer)
        return 0.25 * layer_named(m, h, "output_norm") @ m.w("token_embd.weight").T

    check(m, expected)


@pytest.mark.parametrize(("context", "kind"), [(24, "short"), (64, "long")])
def test_phi3_longrope(context: int, kind: str) -> None:
    """Factors by the length of the context, cosine and sine scaled; one tensor for Q, K, V and one for gate and up."""
    m = SmallModel("phi3")
    m.set_path("rope.scaling.type", "longrope")
    m.set_path("rope.scaling.original_context_length", 24)
    m.set_path("rope.scaling.attn_factor", 1.19)
    m.norms("attn_norm", "ffn_norm")
    m.add("rope_factors_short.weight", np.array([1.0, 1.1, 1.3, 1.7]))
    m.add("rope_factors_long.weight", np.array([1.0, 2.5, 6.0, 14.0]))
    for layer in range(LAYERS):
        m.random(f"blk.{layer}.attn_qkv.weight", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        m.random(f"blk.{layer}.attn_output.weight", WIDTH, HEADS * HEAD)
        m.random(f"blk.{layer}.ffn_up.weight", 2 * FF, WIDTH)
        m.random(f"blk.{layer}.ffn_down.weight", WIDTH, FF)

    def expected(m: SmallModel, h: F64) -> F64:
        turn = frequencies() / m.w(f"rope_factors_{kind}.weight")
        for layer in range(LAYERS):
            qkv = linear(m, rms_named(m, h, f"blk.{layer}.attn_norm"), f"blk.{layer}.attn_qkv")
            q, k, v = np.split(qkv, [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD], axis=1)
            q = rotate(heads(q, HEADS), turn, interleaved=False, magnitude=1.19)
            k = rotate(heads(k, KV_HEADS), turn, interleaved=False, magnitude=1.19)
            a = attend(q, k, heads(v, KV_HEADS), scale=1 / math.sqrt(HEAD))
            h = h + linear(m, a, f"blk.{layer}.attn_output")
            gate, up = np.split(linear(m, rms_named(m, h, f"blk.{layer}.ffn_norm"), f"blk.{layer}.ffn_up"), 2, axis=1)
            h = h + linear(m, silu(gate) * up, f"blk.{layer}.ffn_down")
        return rms_named(m, h, "output_norm") @ m.w("output.weight").T

    check(m, expected, count=20, context=context)


def test_gemma3_scales_the_rotation_of_its_global_layers_only() -> None:
    m = SmallModel("gemma3")
    m.set_path("rope.freq_base", 1e6)
    m.set_path("rope.scaling.type", "linear")
    m.set_path("rope.scaling.factor", 8.0)
    m.set_path("attention.sliding_window", 6)
    m.set_path("attention.sliding_window_pattern", 3)
    del m.tensors["output.weight"]
    m.attention()
    m.feed_forward()
    m.norms("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    for layer in range(LAYERS):
        m.random(f"blk.{layer}.attn_q_norm.weight", HEAD)
        m.random(f"blk.{layer}.attn_k_norm.weight", HEAD)

    def gelu(x: F64) -> F64:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def expected(m: SmallModel, h: F64) -> F64:
        h = h * math.sqrt(WIDTH)
        for layer in range(LAYERS):
            local = layer % 3 < 2
            turn = frequencies(base=1e4) if local else frequencies(base=1e6) / 8
            q, k, v = project(m, rms_named(m, h, f"blk.{layer}.attn_norm"), layer)
            q = rotate(rms(q, m.w(f"blk.{layer}.attn_q_norm.weight")), turn, interleaved=False)
            k = rotate(rms(k, m.w(f"blk.{layer}.attn_k_norm.weight")), turn, interleaved=False)
            a = attend(q, k, v, scale=1 / math.sqrt(HEAD), window=6 if local else None)
            h = h + rms_named(m, linear(m, a, f"blk.{layer}.attn_output"), f"blk.{layer}.post_attention_norm")
            n = rms_named(m, h, f"blk.{layer}.ffn_norm")
            f = linear(
                m,
                gelu(linear(m, n, f"blk.{layer}.ffn_gate")) * linear(m, n, f"blk.{layer}.ffn_up"),
                f"blk.{layer}.ffn_down",
            )
            h = h + rms_named(m, f, f"blk.{layer}.post_ffw_norm")
        return rms_named(m, h, "output_norm") @ m.w("token_embd.weight").T

    check(m, expected)


LATENT, PLAIN, ROTATED, VALUE = 12, 6, 4, 5
N_EXPERTS, N_USED, GROUPS, EXPERT_FF = 8, 3, 4, 16


def deepseek(*, absorbed: bool, yarn: bool, layers: int = LAYERS) -> SmallModel:
    """V2-Lite's attention (queries from one matrix), V3's router (groups, sigmoid, a bias for choosing)."""
    m = SmallModel(
        "deepseek2",
        expert_count=N_EXPERTS,
        expert_used_count=N_USED,
        expert_feed_forward_length=EXPERT_FF,
        expert_shared_count=2,
        expert_gating_func=2,
        expert_weights_norm=True,
        expert_weights_scale=2.5,
        expert_group_count=GROUPS,
        expert_group_used_count=2,
        leading_dense_block_count=1,
    )
    m.set_path("attention.kv_lora_rank", LATENT)
    m.set_path("rope.dimension_count", ROTATED)
    if absorbed:
        m.set_path("attention.head_count_kv", 1)
        m.set_path("attention.key_length", LATENT + ROTATED)
        m.set_path("attention.value_length", LATENT)
        m.set_path("attention.key_length_mla", PLAIN + ROTATED)
        m.set_path("attention.value_length_mla", VALUE)
    else:
        m.set_path("attention.head_count_kv", HEADS)
        m.set_path("attention.key_length", PLAIN + ROTATED)
        m.set_path("attention.value_length", VALUE)
    if yarn:
        m.set_path("rope.scaling.type", "yarn")
        m.set_path("rope.scaling.factor", 8.0)
        m.set_path("rope.scaling.original_context_length", 64)
        m.set_path("rope.scaling.yarn_log_multiplier", 0.0707)
    m.norms()
    for layer in range(layers):
        m.random(f"blk.{layer}.attn_norm.weight", WIDTH)
        m.random(f"blk.{layer}.ffn_norm.weight", WIDTH)
        m.random(f"blk.{layer}.attn_q.weight", HEADS * (PLAIN + ROTATED), WIDTH)
        m.random(f"blk.{layer}.attn_kv_a_mqa.weight", LATENT + ROTATED, WIDTH)
        m.random(f"blk.{layer}.attn_kv_a_norm.weight", LATENT)
        m.random(f"blk.{layer}.attn_kv_b.weight", HEADS * (PLAIN + VALUE), LATENT)
        m.random(f"blk.{layer}.attn_output.weight", WIDTH, HEADS * VALUE)
        up = m.w(f"blk.{layer}.attn_kv_b.weight").reshape(HEADS, PLAIN + VALUE, LATENT)
        if absorbed:
            m.add(f"blk.{layer}.attn_k_b.weight", up[:, :PLAIN].transpose(0, 2, 1))
            m.add(f"blk.{layer}.attn_v_b.weight", up[:, PLAIN:])
    m.random("blk.0.ffn_gate.weight", FF, WIDTH)
    m.random("blk.0.ffn_up.weight", FF, WIDTH)
    m.random("blk.0.ffn_down.weight", WIDTH, FF)
    for layer in range(1, layers):
        m.random(f"blk.{layer}.ffn_gate_inp.weight", N_EXPERTS, WIDTH)
        m.random(f"blk.{layer}.exp_probs_b.bias", N_EXPERTS)
        m.random(f"blk.{layer}.ffn_gate_exps.weight", N_EXPERTS, EXPERT_FF, WIDTH)
        m.random(f"blk.{layer}.ffn_up_exps.weight", N_EXPERTS, EXPERT_FF, WIDTH)
        m.random(f"blk.{layer}.ffn_down_exps.weight", N_EXPERTS, WIDTH, EXPERT_FF)
        m.random(f"blk.{layer}.ffn_gate_shexp.weight", 2 * EXPERT_FF, WIDTH)
        m.random(f"blk.{layer}.ffn_up_shexp.weight", 2 * EXPERT_FF, WIDTH)
        m.random(f"blk.{layer}.ffn_down_shexp.weight", WIDTH, 2 * EXPERT_FF)
    return m


def deepseek_frequencies_and_scale(yarn: bool) -> tuple[F64, float]:
    """As in the model's own code: dimensions between 32 and 1 rotations in the original context are blended."""
    plain, scale = frequencies(ROTATED), 1 / math.sqrt(PLAIN + ROTATED)
    if not yarn:
        return plain, scale
    out = []
    edges = [ROTATED * math.log(64 / (turns * 2 * math.pi)) / (2 * math.log(10000.0)) for turns in (32, 1)]
    low, high = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), ROTATED - 1)
    for j, f in enumerate(plain):
        kept = 1 - min(max((j - low) / max(high - low, 0.001), 0), 1)
        out.append(f * kept + f / 8 * (1 - kept))
    mscale = 0.1 * 0.707 * math.log(8) + 1
    return np.array(out), scale * mscale**2


def deepseek_block(*, yarn: bool) -> Callable[[SmallModel, F64, int], F64]:
    """What a block makes of h [positions, WIDTH]."""

    def moe(m: SmallModel, x: F64, layer: int) -> F64:
        gate, up, down = (m.w(f"blk.{layer}.ffn_{name}_exps.weight") for name in ("gate", "up", "down"))
        out = linear(
            m,
            silu(linear(m, x, f"blk.{layer}.ffn_gate_shexp")) * linear(m, x, f"blk.{layer}.ffn_up_shexp"),
            f"blk.{layer}.ffn_down_shexp",
        )
        for row, vector in enumerate(x):
            score = 1 / (1 + np.exp(-m.w(f"blk.{layer}.ffn_gate_inp.weight") @ vector))
            wanted = score + m.w(f"blk.{layer}.exp_probs_b.bias")
            size = N_EXPERTS // GROUPS
            worth = [sum(sorted(wanted[g * size : (g + 1) * size])[-2:]) for g in range(GROUPS)]
            groups = sorted(range(GROUPS), key=lambda g: -worth[g])[:2]
            candidates = [e for e in range(N_EXPERTS) if e // size in groups]
            chosen = sorted(candidates, key=lambda e: -wanted[e])[:N_USED]
            for e in chosen:
                weight = 2.5 * score[e] / sum(score[c] for c in chosen)
                out[row] += weight * (down[e] @ (silu(gate[e] @ vector) * (up[e] @ vector)))
        return out

    turn, scale = deepseek_frequencies_and_scale(yarn)

    def block(m: SmallModel, h: F64, layer: int) -> F64:
        n = rms_named(m, h, f"blk.{layer}.attn_norm")
        q = heads(linear(m, n, f"blk.{layer}.attn_q"), HEADS)
        both = linear(m, n, f"blk.{layer}.attn_kv_a_mqa")
        latent = rms_named(m, both[:, :LATENT], f"blk.{layer}.attn_kv_a_norm")
        up = heads(linear(m, latent, f"blk.{layer}.attn_kv_b"), HEADS)
        shared = np.repeat(both[:, None, LATENT:], HEADS, axis=1)
        k = np.concatenate([up[:, :, :PLAIN], shared], axis=2)
        q, k = (rotate(x, turn, interleaved=True, start=PLAIN) for x in (q, k))
        a = attend(q, k, up[:, :, PLAIN:], scale=scale)
        h = h + linear(m, a, f"blk.{layer}.attn_output")
        n = rms_named(m, h, f"blk.{layer}.ffn_norm")
        return h + (mlp(m, n, layer) if layer == 0 else moe(m, n, layer))

    return block


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize("absorbed", [False, True])
def test_deepseek2(absorbed: bool, yarn: bool) -> None:
    block = deepseek_block(yarn=yarn)

    def expected(m: SmallModel, h: F64) -> F64:
        for layer in range(LAYERS):
            h = block(m, h, layer)
        return rms_named(m, h, "output_norm") @ m.w("output.weight").T

    check(deepseek(absorbed=absorbed, yarn=yarn), expected)


def test_a_window_reaches_over_tiles_of_keys() -> None:
    """700 positions are more than one tile; the window's edge lies inside of the first or the second."""
    window = 530
    m = SmallModel("gemma2")
    m.set_path("attention.sliding_window", window)
    m.set(attn_logit_softcapping=0.0, final_logit_softcapping=0.0)
    m.attention()
    m.feed_forward()
    m.norms("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    ids = tokens(700)
    whole = m.logits(ids, 1024)
    np.testing.assert_allclose(m.logits(ids, 1024, rows=97), whole, atol=1e-4)
    # far behind every window: layers 0 and 2 are local, so only layer 1 can carry the change, and it does
    changed = ids.copy()
    changed[3] = (changed[3] + 1) % 40
    assert np.abs(m.logits(changed, 1024)[-1] - whole[-1]).max() > 1e-7
    m.set_path("attention.sliding_window_pattern", 0)  # all layers local: three windows reach further than that
    m.set_path("attention.sliding_window", 100)
    near, far = m.logits(ids, 1024), m.logits(changed, 1024)
    assert (near[3 + 3 * 99 + 1 :] == far[3 + 3 * 99 + 1 :]).all()
    assert (near[3:103] != far[3:103]).any(axis=1).all()
