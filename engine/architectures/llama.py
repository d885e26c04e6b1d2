"""The llama family: llama 1 to 3, Mistral, Mixtral, TinyLlama, SmolLM and all that share their graph.

Pre-norm decoder with rotary grouped-query attention and a SiLU-gated feed-forward, dense or a mixture of experts.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    d.scale = d.number("attention.scale", 0.0, minimum=0.0) or d.scale
    rope = d.rope(interleaved=True)
    mixture = d.integer("expert_count", 0) > 0
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        if mixture:
            h = d.g.add(h, d.experts(n, layer, width=d.feed_forward, renormalise=True))
        else:
            h = d.g.add(h, d.gated_mlp(n, layer))
    d.logits(h)
    return d.g
