"""The llama family: llama 1 to 3, Mistral, TinyLlama, SmolLM and all that share their graph.

Pre-norm decoder with rotary grouped-query attention and a SiLU-gated feed-forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.architectures.tensors import matrix, optional_vector, vector
from engine.errors import ModelFileError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Activation, Graph, Rope, Value, Weight, rope_frequencies, yarn
from engine.quants import dequantize


@dataclass(frozen=True)
class Config:
    n_layers: int
    width: int
    feed_forward: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    n_vocab: int
    norm_epsilon: float
    attention_scale: float
    rope: Rope

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        arch = file.architecture
        if file.int(f"{arch}.expert_count", 0, minimum=0) > 0:
            raise UnsupportedModelError(
                f"{file.path.name} is a mixture of experts ({arch}.expert_count), which Realm does not run yet.",
                "Dense llama models work.",
            )
        width = file.int(f"{arch}.embedding_length", minimum=1, maximum=1 << 20)
        n_heads = file.int(f"{arch}.attention.head_count", minimum=1, maximum=1 << 14)
        n_kv_heads = file.int(f"{arch}.attention.head_count_kv", n_heads, minimum=1, maximum=n_heads)
        if n_heads % n_kv_heads:
            raise ModelFileError(
                f"{file.path.name}: {arch}.attention.head_count is {n_heads}, "
                f"which is no multiple of {arch}.attention.head_count_kv, {n_kv_heads}."
            )
        head_width = file.int(f"{arch}.attention.key_length", 0, minimum=0, maximum=1 << 12)
        if head_width == 0:
            if width % n_heads:
                raise ModelFileError(
                    f"{file.path.name}: {arch}.embedding_length is {width}, "
                    f"which is no multiple of {arch}.attention.head_count, {n_heads}."
                )
            head_width = width // n_heads
        value_width = file.int(f"{arch}.attention.value_length", head_width)
        if value_width != head_width:
            raise UnsupportedModelError(
                f"{file.path.name} has keys of {head_width} and values of {value_width} numbers per head "
                f"({arch}.attention.value_length); Realm needs them equal in a {arch} model."
            )
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) < 2:
            raise ModelFileError(
                f"{file.path.name} has no usable tensor 'token_embd.weight'.", "It may hold a vocabulary only."
            )
        return cls(
            n_layers=file.int(f"{arch}.block_count", minimum=1, maximum=1 << 12),
            width=width,
            feed_forward=file.int(f"{arch}.feed_forward_length", minimum=1, maximum=1 << 22),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_width=head_width,
            n_vocab=embedding.shape[0],
            norm_epsilon=file.float(f"{arch}.attention.layer_norm_rms_epsilon", minimum=0.0, maximum=1.0),
            attention_scale=file.float(f"{arch}.attention.scale", 0.0) or 1.0 / math.sqrt(head_width),
            rope=read_rope(file, head_width),
        )


def read_rope(file: GGUFFile, head_width: int) -> Rope:
    """Rotary embedding with none, linear, llama 3 (`rope_freqs` tensor) or YaRN scaling."""
    arch = file.architecture
    n_rotated = file.int(f"{arch}.rope.dimension_count", head_width, minimum=2, maximum=head_width)
    if n_rotated % 2:
        raise ModelFileError(f"{file.path.name}: {arch}.rope.dimension_count is {n_rotated}, which is odd.")
    base = file.float(f"{arch}.rope.freq_base", 10000.0, minimum=1.0)
    factors = None
    if "rope_freqs.weight" in file.tensors:
        vector(file, "rope_freqs.weight", n_rotated // 2)
        info = file.tensors["rope_freqs.weight"]
        factors = dequantize(info.type, file.data(info.name))[0]
        if not (factors > 0).all():
            raise ModelFileError(f"The tensor 'rope_freqs.weight' of {file.path.name} holds values that are not > 0.")
    frequencies = rope_frequencies(n_rotated, base, factors=factors)
    scaling = file.str(f"{arch}.rope.scaling.type", "none")
    factor = file.float(f"{arch}.rope.scaling.factor", 0.0, minimum=0.0)
    if factor == 0.0:
        factor = file.float(f"{arch}.rope.scale_linear", 1.0, minimum=0.0) or 1.0
        scaling = "linear" if scaling == "none" and factor != 1.0 else scaling
    if scaling == "linear":
        return Rope(frequencies / factor, interleaved=True)
    if scaling == "yarn":
        trained = file.int(f"{arch}.context_length", minimum=1)
        blended, magnitude = yarn(
            frequencies,
            base=base,
            factor=factor,
            original_context=file.int(f"{arch}.rope.scaling.original_context_length", trained, minimum=1),
            beta_fast=file.float(f"{arch}.rope.scaling.yarn_beta_fast", 32.0, minimum=0.001),
            beta_slow=file.float(f"{arch}.rope.scaling.yarn_beta_slow", 1.0, minimum=0.001),
        )
        magnitude *= file.float(f"{arch}.rope.scaling.attn_factor", 1.0)
        return Rope(blended, interleaved=True, magnitude=magnitude)
    if scaling != "none":
        raise UnsupportedModelError(
            f"{file.path.name} scales its rotary embedding by {scaling!r} ({arch}.rope.scaling.type), "
            "which Realm does not know.",
            "It knows none, linear, yarn, and llama 3's factors.",
        )
    return Rope(frequencies, interleaved=True)


def build(file: GGUFFile) -> Graph:
    """The graph of a llama model; checks that every tensor is there with the shape the metadata asks for."""
    c = Config.from_gguf(file)
    g = Graph(c.n_vocab, c.n_layers, c.n_kv_heads, c.head_width)
    table = matrix(file, "token_embd.weight", c.n_vocab, c.width)
    h = g.embed(table)
    for layer in range(c.n_layers):
        h = _attention_block(g, file, c, layer, h)
        if layer == c.n_layers - 1:
            h = g.select_rows(h)
        h = _feed_forward_block(g, file, c, layer, h)
    h = g.rms_norm(h, vector(file, "output_norm.weight", c.width), c.norm_epsilon)
    tied = "output.weight" not in file.tensors
    g.linear(h, table if tied else matrix(file, "output.weight", c.n_vocab, c.width))
    return g


def _attention_block(g: Graph, file: GGUFFile, c: Config, layer: int, h: Value) -> Value:
    n = g.rms_norm(h, vector(file, f"blk.{layer}.attn_norm.weight", c.width), c.norm_epsilon)

    def project(name: str, rows: int) -> Value:
        weight, bias = _linear(file, f"blk.{layer}.{name}", rows, c.width)
        return g.linear(n, weight, bias)

    q = project("attn_q", c.n_heads * c.head_width)
    k = project("attn_k", c.n_kv_heads * c.head_width)
    v = project("attn_v", c.n_kv_heads * c.head_width)
    a = g.attention(q, k, v, layer=layer, n_heads=c.n_heads, scale=c.attention_scale, rope=c.rope)
    return g.add(h, g.linear(a, *_linear(file, f"blk.{layer}.attn_output", c.width, c.n_heads * c.head_width)))


def _feed_forward_block(g: Graph, file: GGUFFile, c: Config, layer: int, h: Value) -> Value:
    n = g.rms_norm(h, vector(file, f"blk.{layer}.ffn_norm.weight", c.width), c.norm_epsilon)
    gate = g.linear(n, *_linear(file, f"blk.{layer}.ffn_gate", c.feed_forward, c.width))
    up = g.linear(n, *_linear(file, f"blk.{layer}.ffn_up", c.feed_forward, c.width))
    gated = g.gate(gate, up, Activation.SILU)
    return g.add(h, g.linear(gated, *_linear(file, f"blk.{layer}.ffn_down", c.width, c.feed_forward)))


def _linear(file: GGUFFile, name: str, rows: int, columns: int) -> tuple[Weight, Weight | None]:
    return matrix(file, f"{name}.weight", rows, columns), optional_vector(file, f"{name}.bias", rows)
