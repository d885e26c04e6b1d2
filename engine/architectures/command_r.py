"""Command R: one layer norm without bias for attention and feed-forward side by side, logits scaled.

The large model (R+) norms each head of queries and keys with weights of its own.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length, norm="layer")
    rope = d.rope(interleaved=True)
    h = d.embed()
    for layer in range(d.n_layers):
        n = d.norm(h, f"blk.{layer}.attn_norm")
        q, k, v = d.qkv(n, layer)
        if d.has(f"blk.{layer}.attn_q_norm.weight"):
            q = d.norm(q, f"blk.{layer}.attn_q_norm", heads=d.n_heads, weights_per_head=True)
            k = d.norm(k, f"blk.{layer}.attn_k_norm", heads=d.n_kv_heads, weights_per_head=True)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        h = d.g.add(h, d.gated_mlp(d.last_rows(layer, n), layer))
    d.logits(h, scale=d.number("logit_scale", 0.0) or 1.0)
    return d.g
