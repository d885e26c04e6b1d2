"""DeepSeek V2, V2-Lite, V3 and R1: latent attention and a mixture of experts with shared ones.

Keys and values of all heads come from one latent row per position, beside a part of the key that is rotated and
shared by all heads. Newer files hold the up-projections head by head (attn_k_b, attn_v_b): then queries are brought
into the latent space instead, and attention has a single key/value head, the latent row itself. Older files hold
them in one tensor (attn_kv_b): then keys and values of every head are formed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from engine.architectures.decoder import Decoder
from engine.architectures.prediction import Block, build_decoder, build_with_prediction
from engine.architectures.rope import read_n_rotated, read_scaling_factor, yarn_magnitude
from engine.architectures.tensors import matrices
from engine.errors import UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Gating, Graph, Piece, Rope, Value

GATINGS = {1: Gating.SOFTMAX, 2: Gating.SIGMOID, 3: Gating.CHOSEN_SOFTMAX}


def build(file: GGUFFile, context_length: int) -> Graph:
    return build_decoder(Decoder(file, context_length), blocks)


def build_predicting(file: GGUFFile, context_length: int) -> tuple[Graph, Graph]:
    return build_with_prediction(file, context_length, blocks)


def blocks(d: Decoder) -> Block:
    attention = LatentAttention(d)
    n_dense = d.integer("leading_dense_block_count", 0)

    def block(h: Value, layer: int) -> Value:
        h = d.g.add(h, attention(d.norm(h, f"blk.{layer}.attn_norm"), layer))
        h = d.last_rows(layer, h)
        n = d.norm(h, f"blk.{layer}.ffn_norm")
        return d.g.add(h, d.gated_mlp(n, layer) if layer < n_dense else experts(d, n, layer))

    return block


class LatentAttention:
    """Attributes: key, value: widths of one head; rotated: of the key's rotated end; latent: of the latent row."""

    def __init__(self, d: Decoder) -> None:
        self.d = d
        self.key = d.integer("attention.key_length_mla", d.head_width, minimum=1, maximum=1 << 12)
        self.value = d.integer("attention.value_length_mla", d.value_width, minimum=1, maximum=1 << 12)
        self.rotated = read_n_rotated(d.file, self.key)
        self.plain = self.key - self.rotated
        if self.plain == 0:
            raise d.wrong(f"{d.key('rope.dimension_count')} leaves no part of a key unrotated")
        self.latent = d.integer("attention.kv_lora_rank", minimum=1, maximum=1 << 16)
        self.rope, self.scale = self._rope_and_scale()

    def _rope_and_scale(self) -> tuple[Rope, float]:
        """With YaRN, DeepSeek puts the magnitude into the scale of the scores, as far as its own multiplier says."""
        d = self.d
        rope, scale = d.rope(interleaved=True), 1.0 / math.sqrt(self.key)
        if d.file.str(d.key("rope.scaling.type"), "none") == "yarn":
            factor = read_scaling_factor(d.file)
            multiplier = d.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1  # files hold a tenth of it
            if multiplier:
                rope = replace(rope, magnitude=rope.magnitude / yarn_magnitude(factor))
            scale *= (rope.magnitude * yarn_magnitude(factor, multiplier)) ** 2
        return rope, scale

    def __call__(self, x: Value, layer: int) -> Value:
        d, g = self.d, self.d.g
        q = self._queries(x, layer)
        both = d.linear(x, f"blk.{layer}.attn_kv_a_mqa", self.latent + self.rotated)
        latent = d.norm(g.slice(both, 0, self.latent), f"blk.{layer}.attn_kv_a_norm")
        shared_key = Piece(both, 1, self.latent, self.rotated)
        if d.has(f"blk.{layer}.attn_k_b.weight"):
            a = self._attend_in_latent_space(q, latent, shared_key, layer)
        else:
            a = self._attend(q, latent, shared_key, layer)
        return d.linear(a, f"blk.{layer}.attn_output", d.width)

    def _queries(self, x: Value, layer: int) -> Value:
        d = self.d
        if d.has(f"blk.{layer}.attn_q.weight"):
            return d.linear(x, f"blk.{layer}.attn_q", d.n_heads * self.key)
        rank = d.integer("attention.q_lora_rank", minimum=1, maximum=1 << 16)
        low = d.norm(d.linear(x, f"blk.{layer}.attn_q_a", rank), f"blk.{layer}.attn_q_a_norm")
        return d.linear(low, f"blk.{layer}.attn_q_b", d.n_heads * self.key)

    def _attend_in_latent_space(self, q: Value, latent: Value, shared_key: Piece, layer: int) -> Value:
        d, g, heads = self.d, self.d.g, self.d.n_heads
        up_k = matrices(d.file, f"blk.{layer}.attn_k_b.weight", heads, self.latent, self.plain)
        up_v = matrices(d.file, f"blk.{layer}.attn_v_b.weight", heads, self.value, self.latent)
        absorbed = g.linear(g.slice(q, 0, self.plain, heads=heads), up_k, heads=heads)
        query = g.join(Piece(absorbed, heads, 0, self.latent), Piece(q, heads, self.plain, self.rotated), heads=heads)
        key = g.join(Piece(latent, 1, 0, self.latent), shared_key, heads=1)
        a = g.attention(
            query,
            key,
            latent,
            layer=layer,
            n_heads=heads,
            n_kv_heads=1,
            scale=self.scale,
            rope=self.rope,
            rope_start=self.latent,
        )
        return g.linear(a, up_v, heads=heads)

    def _attend(self, q: Value, latent: Value, shared_key: Piece, layer: int) -> Value:
        d, g, heads = self.d, self.d.g, self.d.n_heads
        up = d.linear(latent, f"blk.{layer}.attn_kv_b", heads * (self.plain + self.value))
        key = g.join(Piece(up, heads, 0, self.plain), shared_key, heads=heads)
        value = g.slice(up, self.plain, self.value, heads=heads)
        return g.attention(
            q,
            key,
            value,
            layer=layer,
            n_heads=heads,
            n_kv_heads=heads,
            scale=self.scale,
            rope=self.rope,
            rope_start=self.plain,
        )


def experts(d: Decoder, x: Value, layer: int, *, gating: int = 1) -> Value:
    """The experts that the router chooses and the shared ones. gating: of GATINGS, where the file says nothing."""
    width = d.integer("expert_feed_forward_length", minimum=1)
    gating = d.integer("expert_gating_func", 0) or gating
    if gating not in GATINGS:
        raise UnsupportedModelError(
            f"{d.file.path.name} gates its experts by function {gating} ({d.key('expert_gating_func')}), "
            "which Realm does not know."
        )
    groups = d.integer("expert_group_count", 1) or 1
    count = d.integer("expert_count", minimum=1)
    if count % groups or count // groups < 2:
        raise d.wrong(f"{d.key('expert_group_count')} is {groups}, which does not divide {count} experts into groups")
    mixed = d.experts(
        x,
        layer,
        width=width,
        gating=GATINGS[gating],
        renormalise=d.file.bool(d.key("expert_weights_norm"), False),
        groups=groups,
        groups_used=d.integer("expert_group_used_count", groups, minimum=1, maximum=groups) if groups > 1 else 1,
    )
    shared = d.integer("expert_shared_count", 0)
    if shared == 0:
        return mixed
    return d.g.add(mixed, d.gated_mlp(x, layer, width=shared * width, kind="_shexp"))
