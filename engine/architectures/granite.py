"""Granite: llama's graph with four multipliers, of embeddings, attention scores, residual branches and logits."""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.gguf import GGUFFile
from engine.graph import Graph


def build(file: GGUFFile, context_length: int) -> Graph:
    d = Decoder(file, context_length)
    d.scale = d.number("attention.scale", 0.0, minimum=0.0) or d.scale
    residual = d.number("residual_scale", 0.0) or 1.0
    logit_divisor = d.number("logit_scale")
    if logit_divisor == 0:
        raise d.wrong(f"the key {d.key('logit_scale')} is 0, but logits are divided by it")
    rope = d.rope(interleaved=True) if file.bool(d.key("rope.scaling.finetuned"), True) else None
    h = d.embed(scale=d.number("embedding_scale", 0.0) or 1.0)
    for layer in range(d.n_layers):
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        h = d.g.add(h, d.attention(q, k, v, layer, rope, output_scale=residual))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        h = d.g.add(h, d.gated_mlp(n, layer, output_scale=residual))
    d.logits(h, scale=1.0 / logit_divisor)
    return d.g
