"""StarCoder 2: layer norms, biases everywhere, and a feed-forward without a gate."""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Activation, Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length, norm="layer")
    rope = d.rope(interleaved=False)
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        h = d.g.add(h, d.plain_mlp(n, layer, Activation.GELU))
    d.logits(h)
    return d.g
