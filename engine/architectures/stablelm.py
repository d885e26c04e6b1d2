"""StableLM 2 (and 3B): layer norms, a part of each head rotated.

The 12B model norms each head of queries and keys, with weights of its own for every head, and has no second norm:
there attention and feed-forward read the same rows, side by side.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length, norm="layer")
    rope = d.rope(interleaved=False)
    h = d.embed()
    for layer in range(d.n_layers):
        n = d.norm(h, f"blk.{layer}.attn_norm")
        q, k, v = d.qkv(n, layer)
        if d.has(f"blk.{layer}.attn_q_norm.weight"):
            q = d.norm(q, f"blk.{layer}.attn_q_norm", heads=d.n_heads, weights_per_head=True)
        if d.has(f"blk.{layer}.attn_k_norm.weight"):
            k = d.norm(k, f"blk.{layer}.attn_k_norm", heads=d.n_kv_heads, weights_per_head=True)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        if d.has(f"blk.{layer}.ffn_norm.weight"):
            n = d.norm(h, f"blk.{layer}.ffn_norm")
        else:
            n = d.last_rows(layer, n)
        h = d.g.add(h, d.gated_mlp(n, layer))
    d.logits(h)
    return d.g
