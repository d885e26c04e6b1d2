"""BERT and Nomic BERT: encoders, whose positions all see each other, and whose result is a vector for each token.

Norms follow the blocks (post-norm). BERT adds a learned vector for each position, has biases everywhere and GELU (by
tanh, as the reference computes it); Nomic BERT rotates queries and keys, and gates by SiLU without biases; its mixture
of experts has GELU experts, without gates, in every other layer.
"""

from __future__ import annotations

from engine.architectures.decoder import Decoder
from engine.architectures.tensors import matrices, matrix
from engine.errors import ModelFileError
from engine.gguf import GGUFFile
from engine.graph import Activation, Gating, Graph, Index, Value


def build_bert(file: GGUFFile, context_length: int) -> Graph:
    return _build(Decoder(file, context_length, norm="layer", causal=False), rotates=False)


def build_nomic_bert(file: GGUFFile, context_length: int) -> Graph:
    return _build(Decoder(file, context_length, norm="layer", causal=False), rotates=True)


def _build(d: Decoder, *, rotates: bool) -> Graph:
    d.g.n_layers = 1  # nothing is kept from one step to the next: all layers use one cache
    rope = d.rope(interleaved=False) if rotates else None
    h = _embed(d, learned_positions=not rotates)
    for layer in range(d.n_layers):
        q, k, v = d.qkv(h, layer)
        if d.has(f"blk.{layer}.attn_q_norm.weight"):
            q, k = d.norm(q, f"blk.{layer}.attn_q_norm"), d.norm(k, f"blk.{layer}.attn_k_norm")
        h = d.g.add(h, d.attention(q, k, v, layer, rope, cache=0))
        h = d.norm(d.last_rows(layer, h), f"blk.{layer}.attn_output_norm")
        h = d.norm(d.g.add(h, _feed_forward(d, h, layer)), f"blk.{layer}.layer_output_norm")
    d.g.hidden = h
    return d.g


def _embed(d: Decoder, *, learned_positions: bool) -> Value:
    h = d.embed()
    if d.has("token_types.weight"):
        types = d.file.tensors["token_types.weight"].shape[0]
        # every token is one of the first text: there is no second one beside it
        table = matrix(d.file, "token_types.weight", types, d.width)
        h = d.g.add(h, d.g.embed(table, index=Index.FIRST))
    if learned_positions:
        trained = d.integer("context_length", minimum=1)
        if d.context_length > trained:
            raise ModelFileError(
                f"{d.file.path.name} has vectors for {trained} positions; a context of {d.context_length} tokens "
                "cannot be.",
                f"Choose a context of at most {trained} tokens.",
            )
        h = d.g.add(h, d.g.embed(matrix(d.file, "position_embd.weight", trained, d.width), index=Index.POSITIONS))
    return d.norm(h, "token_embd_norm")


def _feed_forward(d: Decoder, h: Value, layer: int) -> Value:
    period = d.integer("moe_every_n_layers", 0) if d.arch == "nomic-bert-moe" else 0
    if period and layer % period == 1:
        return _experts(d, h, layer)
    if d.arch == "nomic-bert":
        return d.gated_mlp(h, layer, Activation.SILU)
    return d.plain_mlp(h, layer, Activation.GELU)


def _experts(d: Decoder, h: Value, layer: int) -> Value:
    count = d.integer("expert_count", minimum=1, maximum=1 << 14)
    n_used = d.integer("expert_used_count", minimum=1, maximum=count)
    logits = d.linear(h, f"blk.{layer}.ffn_gate_inp", count)
    route = d.g.route(logits, n_used=n_used, gating=Gating.SOFTMAX)
    inner = matrices(d.file, f"blk.{layer}.ffn_up_exps.weight", count, d.feed_forward, d.width)
    outer = matrices(d.file, f"blk.{layer}.ffn_down_exps.weight", count, d.width, d.feed_forward)
    up = d.g.activate(d.g.expert_linear(h, route, inner, None, count), Activation.GELU)
    return d.g.expert_sum(d.g.expert_linear(up, route, outer, None, count), route)
