"""GLM 4: norms before and after each block, half of each head rotated, gate and up in one tensor."""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    rope = d.rope(interleaved=True)
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        a = d.attention(q, k, v, layer, rope)
        h = d.g.add(h, d.norm(a, f"blk.{layer}.post_attention_norm"))
        h = d.last_rows(layer, h)
        f = d.gated_mlp(d.norm(h, f"blk.{layer}.ffn_norm"), layer)
        h = d.g.add(h, d.norm(f, f"blk.{layer}.post_ffw_norm"))
    d.logits(h)
    return d.g
