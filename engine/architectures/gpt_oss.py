"""gpt-oss: a mixture of experts with biases and a clamped gate, attention with sinks, every other layer local."""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Activation, Gating, Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    rope = d.rope(interleaved=False)
    window = d.sliding_window()
    local = d.local_layers(period=2)
    width = d.integer("expert_feed_forward_length", minimum=1)
    h = d.embed()
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        sinks = d.vector(f"blk.{layer}.attn_sinks.weight", d.n_heads)
        a = d.attention(q, k, v, layer, rope, window=window if local[layer] else 0, sinks=sinks)
        h = d.last_rows(layer, d.g.add(h, a))
        n = d.norm(h, f"blk.{layer}.post_attention_norm")
        mixed = d.experts(
            n, layer, Activation.CLAMPED_SWIGLU, width=width, gating=Gating.CHOSEN_SOFTMAX, renormalise=False
        )
        h = d.g.add(h, mixed)
    d.logits(h)
    return d.g
