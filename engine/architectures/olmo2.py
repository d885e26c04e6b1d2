"""OLMo 2 and 3: no norms before the blocks but after them, and norms over all of the queries and all of the keys.

OLMo 3 adds a sliding window to three of four layers; these rotate without the scaling of the others.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.architectures.rope import read_n_rotated
from engine.gguf import GGUFFile
from engine.graph import Graph, Rope, rope_frequencies


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    rope = d.rope(interleaved=False)
    window = d.sliding_window()
    local = d.local_layers(period=4)
    base = d.number("rope.freq_base", 10000.0, minimum=1.0)
    local_rope = Rope(rope_frequencies(read_n_rotated(file, d.head_width), base), interleaved=False)
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(h, layer)
        q = d.norm(q, f"blk.{layer}.attn_q_norm")
        k = d.norm(k, f"blk.{layer}.attn_k_norm")
        if window and local[layer]:
            a = d.attention(q, k, v, layer, local_rope, window=window)
        else:
            a = d.attention(q, k, v, layer, rope)
        h = d.g.add(h, d.norm(a, f"blk.{layer}.post_attention_norm"))
        h = d.last_rows(layer, h)
        f = d.gated_mlp(h, layer)
        h = d.g.add(h, d.norm(f, f"blk.{layer}.post_ffw_norm"))
    d.logits(h)
    return d.g
