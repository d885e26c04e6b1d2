"""Phi 3 and 3.5: llama's graph with Q, K, V in one tensor, gate and up in another, and longrope for long contexts.

Phi 3's sliding window is not applied: its files do not say it right, and the reference ignores it as well.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    rope = d.rope(interleaved=False)
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        h = d.g.add(h, d.gated_mlp(n, layer))
    d.logits(h)
    return d.g
