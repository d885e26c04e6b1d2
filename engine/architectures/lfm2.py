"""LFM 2: most layers are short gated convolutions, some are attention with a norm on each head.

A convolution reads the last few rows of its own input. These are kept in the KV cache, at the positions they belong
to: so sequences that share a prefix share them too, and no step depends on which rows ran in the step before it.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.architectures.tensors import matrix
from engine.gguf import GGUFFile
from engine.graph import Activation, Graph, Rope, Value


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length, hybrid=True)
    rope = d.rope(interleaved=False)
    h = d.embed()
    for layer in range(d.n_layers):
        n = d.norm(h, f"blk.{layer}.attn_norm")
        h = d.g.add(h, _attention(d, n, layer, rope) if d.attends[layer] else _convolution(d, n, layer))
        h = d.last_rows(layer, h)
        h = d.g.add(h, d.gated_mlp(d.norm(h, f"blk.{layer}.ffn_norm"), layer))
    d.logits(h, norm="token_embd_norm" if d.has("token_embd_norm.weight") else "output_norm")
    return d.g


def _attention(d: Decoder, x: Value, layer: int, rope: Rope) -> Value:
    q, k, v = d.qkv(x, layer)
    q = d.norm(q, f"blk.{layer}.attn_q_norm", heads=d.n_heads)
    k = d.norm(k, f"blk.{layer}.attn_k_norm", heads=d.n_kv_heads)
    return d.attention(q, k, v, layer, rope, window=d.sliding_window())


def _convolution(d: Decoder, x: Value, layer: int) -> Value:
    """out(c * conv(b * y)) with b, c, y = in(x)"""
    taps = d.integer("shortconv.l_cache", minimum=2, maximum=1 << 8)
    weight = matrix(d.file, f"blk.{layer}.shortconv.conv.weight", d.width, taps)
    b, c, y = d.linear_parts(x, f"blk.{layer}.shortconv.in_proj", d.width, d.width, d.width)
    convolved = d.g.short_conv(d.g.gate(b, y, Activation.IDENTITY), weight, layer=layer)
    return d.linear(d.g.gate(c, convolved, Activation.IDENTITY), f"blk.{layer}.shortconv.out_proj", d.width)
