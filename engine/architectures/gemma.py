"""Gemma 1 to 3.

Embeddings are scaled by the root of the width, the feed-forward is GELU-gated. Gemma 2 norms the results of its
blocks, too, caps scores and logits, and lets every other layer see a sliding window only. Gemma 3 has no caps but
norms each head of queries and keys; five of six layers are local, with a rotary base of their own.

Files hold the norms' weights with 1 already added.
"""

from __future__ import annotations

import math

from engine.architectures.decoder import Decoder
from engine.architectures.rope import read_n_rotated
from engine.gguf import GGUFFile
from engine.graph import Activation, Graph, Rope, Value, rope_frequencies

LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""The models whose scale of attention is by the width, not by that of a head; files do not say so."""


def build_gemma(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    rope = d.rope(interleaved=False)
    h = d.embed(scale=math.sqrt(d.width))
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        h = d.g.add(h, d.gated_mlp(n, layer, Activation.GELU))
    d.logits(h)
    return d.g


def build_gemma2(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    d.scale = _scale(d)
    rope = d.rope(interleaved=False)
    window = d.sliding_window(4096)
    local = d.local_layers(period=2)
    softcap = d.number("attn_logit_softcapping", 50.0, minimum=0.0)
    h = d.embed(scale=math.sqrt(d.width))
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        a = d.attention(q, k, v, layer, rope, window=window if local[layer] else 0, softcap=softcap)
        h = _rest_of_layer(d, layer, h, a)
    return _logits(d, h, d.number("final_logit_softcapping", 30.0, minimum=0.0))


def build_gemma3(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    d.scale = _scale(d)
    rope = d.rope(interleaved=False)
    window = d.sliding_window()
    local = d.local_layers(period=6)
    local_base = d.number("rope.freq_base_swa", 10000.0, minimum=1.0)
    local_rope = Rope(rope_frequencies(read_n_rotated(file, d.head_width), local_base), interleaved=False)
    h = d.embed(scale=math.sqrt(d.width))
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        q = d.norm(q, f"blk.{layer}.attn_q_norm", heads=d.n_heads)
        k = d.norm(k, f"blk.{layer}.attn_k_norm", heads=d.n_kv_heads)
        if window and local[layer]:
            a = d.attention(q, k, v, layer, local_rope, window=window)
        else:
            a = d.attention(q, k, v, layer, rope)
        h = _rest_of_layer(d, layer, h, a)
    return _logits(d, h, d.number("final_logit_softcapping", 0.0, minimum=0.0))


def _scale(d: Decoder) -> float:
    if d.n_layers == LAYERS_OF_27B[d.arch]:
        return 1.0 / math.sqrt(d.width // d.n_heads)
    return d.scale


def _rest_of_layer(d: Decoder, layer: int, h: Value, attended: Value) -> Value:
    h = d.g.add(h, d.norm(attended, f"blk.{layer}.post_attention_norm"))
    h = d.last_rows(layer, h)
    n = d.norm(h, f"blk.{layer}.ffn_norm")
    f = d.gated_mlp(n, layer, Activation.GELU)
    return d.g.add(h, d.norm(f, f"blk.{layer}.post_ffw_norm"))


def _logits(d: Decoder, h: Value, cap: float) -> Graph:
    logits = d.logits(h)
    if cap and d.g.causal:
        d.g.soft_cap(logits, cap)
    return d.g
