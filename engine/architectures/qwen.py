"""Qwen 2, 2.5 and 3, dense and as mixtures of experts.

Qwen 2 has biases on queries, keys and values; qwen 3 normalises each head of queries and keys instead. Qwen2moe adds
to its experts a shared one, which every row uses as far as a sigmoid gate of its own lets it.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Activation, Graph, Value


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    rope = d.rope(interleaved=False)
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        if d.arch in ("qwen3", "qwen3moe"):
            q = d.norm(q, f"blk.{layer}.attn_q_norm", heads=d.n_heads)
            k = d.norm(k, f"blk.{layer}.attn_k_norm", heads=d.n_kv_heads)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        h = d.g.add(h, _feed_forward(d, n, layer))
    d.logits(h)
    return d.g


def _feed_forward(d: Decoder, x: Value, layer: int) -> Value:
    if d.arch in ("qwen2", "qwen3"):
        return d.gated_mlp(x, layer)
    width = d.integer("expert_feed_forward_length", 0)
    if width == 0:
        width = d.feed_forward // d.integer("expert_used_count", minimum=1)
    mixed = d.experts(x, layer, width=width, renormalise=d.arch == "qwen3moe")
    if d.arch == "qwen3moe":
        return mixed
    shared_width = d.integer("expert_shared_feed_forward_length", 0) or d.feed_forward
    shared = d.gated_mlp(x, layer, width=shared_width, kind="_shexp")
    openness = d.linear(x, f"blk.{layer}.ffn_gate_inp_shexp", 1)
    return d.g.add(mixed, d.g.gate(openness, shared, Activation.SIGMOID))
