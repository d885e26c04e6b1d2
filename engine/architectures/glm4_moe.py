"""GLM 4.5 to 4.7: half of each head rotated, in the large ones heads of queries and keys normalised, and DeepSeek's
mixture of experts with shared ones."""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.architectures.deepseek2 import experts
from engine.architectures.prediction import Block, build_decoder, build_with_prediction
from engine.gguf import GGUFFile
from engine.graph import Graph, Value

SIGMOID = 2
"""As files number the gating."""


def build(file: GGUFFile, context_length: int) -> Graph:
    return build_decoder(Decoder(file, context_length), blocks)


def build_predicting(file: GGUFFile, context_length: int) -> tuple[Graph, Graph]:
    return build_with_prediction(file, context_length, blocks)


def blocks(d: Decoder) -> Block:
    rope = d.rope(interleaved=False)
    n_dense = d.integer("leading_dense_block_count", 0)

    def block(h: Value, layer: int) -> Value:
        q, k, v = d.qkv(d.norm(h, f"blk.{layer}.attn_norm"), layer)
        if d.has(f"blk.{layer}.attn_q_norm.weight"):
            q = d.norm(q, f"blk.{layer}.attn_q_norm", heads=d.n_heads)
            k = d.norm(k, f"blk.{layer}.attn_k_norm", heads=d.n_kv_heads)
        h = d.g.add(h, d.attention(q, k, v, layer, rope))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.post_attention_norm")
        return d.g.add(h, d.gated_mlp(n, layer) if layer < n_dense else experts(d, n, layer, gating=SIGMOID))

    return block
