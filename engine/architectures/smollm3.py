"""SmolLM 3: llama's graph, but every fourth layer does not rotate its queries and keys."""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph

UNROTATED_PERIOD = 4
"""Layers 3, 7, 11, ... know nothing of positions; files do not say so."""


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    d.scale = d.number("attention.scale", 0.0, minimum=0.0) or d.scale
    rope = d.rope(interleaved=True)
    h = d.embed()
    for layer in range(d.n_layers):
        rotated = (layer + 1) % UNROTATED_PERIOD != 0
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        h = d.g.add(h, d.attention(q, k, v, layer, rope if rotated else None))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        h = d.g.add(h, d.gated_mlp(n, layer))
    d.logits(h)
    return d.g
