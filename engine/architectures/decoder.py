"""The blocks that families share: a decoder under construction, its sizes read and checked."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import numpy as np

from engine.architectures.rope import read_rope
from engine.architectures.tensors import matrices, matrix, optional_vector, vector
from engine.errors import ModelFileError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Activation, Gating, Graph, Rope, Value, Weight


class Decoder:
    """A model file and the graph that a family builds from it, block by block.

    Every size comes from the file's metadata, and every tensor is checked against it: a method raises ModelFileError
    naming the key or the tensor, or UnsupportedModelError for what is sound but cannot run.

    Attributes:
        g: the graph so far.
        n_layers, width, n_heads, n_kv_heads, head_width, value_width: as the metadata says; the last two of one head.
        scale: of attention scores, 1 / sqrt(head_width) where the family says nothing else.
    """

    def __init__(
        self,
        file: GGUFFile,
        context_length: int,
        *,
        norm: Literal["rms", "layer"] = "rms",
        hybrid: bool = False,
        causal: bool = True,
        keeps_rows: bool = False,
    ) -> None:
        """norm: the kind that norm() gives. hybrid: only some layers attend, n_kv_heads is of these (lfm2).

        causal: False for encoders; a file of any family may say so too (attention.causal).
        keeps_rows: the graph keeps what every row comes to after the last norm (Graph.kept).
        """
        self.file = file
        self.arch = file.architecture
        self.context_length = context_length
        self._n_blocks = self.integer("block_count", minimum=1, maximum=1 << 12)
        # the last blocks of some files predict further tokens (prediction.py) and are no part of the decoder itself
        self.n_layers = self._n_blocks - self.integer("nextn_predict_layers", 0, maximum=self._n_blocks - 1)
        self.width = self.integer("embedding_length", minimum=1, maximum=1 << 20)
        self.n_heads = self.uniform("attention.head_count", minimum=1, maximum=1 << 14)
        if hybrid:
            counts = file.ints(self.key("attention.head_count_kv"), count=self._n_blocks, minimum=0)
            self.attends = [count > 0 for count in counts.tolist()]
            self.n_kv_heads = self._same("attention.head_count_kv", [n for n in counts.tolist() if n] or [1])
        else:
            self.n_kv_heads = self.uniform("attention.head_count_kv", self.n_heads, minimum=1, maximum=1 << 14)
        if self.n_heads % self.n_kv_heads:
            raise self.wrong(
                f"{self.key('attention.head_count')} is {self.n_heads}, "
                f"which is no multiple of {self.key('attention.head_count_kv')}, {self.n_kv_heads}"
            )
        self.head_width = self._head_width()
        self.value_width = self.integer("attention.value_length", self.head_width, minimum=1, maximum=1 << 12)
        self.scale = 1.0 / math.sqrt(self.head_width)
        self._norm = norm
        self._keeps_rows = keeps_rows
        epsilon = "attention.layer_norm_rms_epsilon" if norm == "rms" else "attention.layer_norm_epsilon"
        self.epsilon = self.number(epsilon, minimum=0.0, maximum=1.0)
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ModelFileError(
                f"{file.path.name} has no usable tensor 'token_embd.weight'.", "It may hold a vocabulary only."
            )
        causal = file.bool(self.key("attention.causal"), causal)
        self.g = Graph(embedding.shape[0], self.n_layers, self.n_kv_heads, self.head_width, causal)
        self._table = matrix(file, "token_embd.weight", self.g.n_vocab, self.width)

    def _head_width(self) -> int:
        width = self.integer("attention.key_length", 0, maximum=1 << 12)
        if width == 0:
            if self.width % self.n_heads:
                raise self.wrong(
                    f"{self.key('embedding_length')} is {self.width}, "
                    f"which is no multiple of {self.key('attention.head_count')}, {self.n_heads}"
                )
            width = self.width // self.n_heads
        return width

    def key(self, name: str) -> str:
        return f"{self.arch}.{name}"

    def integer(self, name: str, default: int | None = None, *, minimum: int = 0, maximum: int = 1 << 30) -> int:
        """The value of a key of this architecture; required where there is no default."""
        if default is None:
            return self.file.int(self.key(name), minimum=minimum, maximum=maximum)
        return self.file.int(self.key(name), default, minimum=minimum, maximum=maximum)

    def number(
        self, name: str, default: float | None = None, *, minimum: float | None = None, maximum: float | None = None
    ) -> float:
        if default is None:
            return self.file.float(self.key(name), minimum=minimum, maximum=maximum)
        return self.file.float(self.key(name), default, minimum=minimum, maximum=maximum)

    def uniform(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = 1 << 30) -> int:
        """An integer that a file may give for each layer, but the same for all."""
        key = self.key(name)
        if isinstance(self.file.metadata.get(key), np.ndarray):
            counts = self.file.ints(key, minimum=minimum, maximum=maximum, count=self._n_blocks)
            return self._same(name, counts.tolist())
        return self.integer(name, default, minimum=minimum, maximum=maximum)

    def _same(self, name: str, values: list[int]) -> int:
        if len(set(values)) > 1:
            raise UnsupportedModelError(
                f"{self.file.path.name} has layers that differ in {self.key(name)}, "
                f"which Realm does not run in a {self.arch} model."
            )
        return values[0]

    def wrong(self, what: str) -> ModelFileError:
        return ModelFileError(
            f"{self.file.path.name}: {what}.", "The file is damaged or was converted wrongly; download it again."
        )

    @cached_property
    def feed_forward(self) -> int:
        """Width inside of a dense feed-forward block."""
        return self.uniform("feed_forward_length", maximum=1 << 22)

    def sliding_window(self, default: int = 0) -> int:
        return self.integer("attention.sliding_window", default)

    def local_layers(self, period: int) -> list[bool]:
        """Which layers attend within the sliding window: all but every period-th, or as the file says layer by layer.

        The key is a period itself (0: all layers are local) or an array with an entry for each layer.
        """
        key = self.key("attention.sliding_window_pattern")
        value = self.file.metadata.get(key)
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biu" or len(value) != self._n_blocks:
                raise self.wrong(f"the key {key} must hold {self._n_blocks} booleans, one for each layer")
            return [bool(local) for local in value]
        period = self.integer("attention.sliding_window_pattern", period)
        return [period == 0 or layer % period < period - 1 for layer in range(self.n_layers)]

    def rope(self, *, interleaved: bool) -> Rope:
        return read_rope(self.file, self.head_width, self.context_length, interleaved=interleaved)

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def vector(self, name: str, *shape: int) -> Weight:
        return vector(self.file, name, *shape)

    def embed(self, scale: float = 1.0) -> Value:
        return self.g.embed(self._table, scale=scale)

    def norm(self, x: Value, name: str, *, heads: int = 1, weights_per_head: bool = False) -> Value:
        """Normalises rows, or each of `heads` parts of a row, with the tensors `name`.weight and `name`.bias.

        weights_per_head: every head has weights of its own; else they share them.
        """
        part = x.width // heads
        shape = (heads, part) if weights_per_head and heads > 1 else (part,)
        weight = self.vector(f"{name}.weight", *shape)
        if self._norm == "rms":
            return self.g.rms_norm(x, weight, self.epsilon, heads=heads)
        bias = optional_vector(self.file, f"{name}.bias", *shape)
        return self.g.layer_norm(x, weight, self.epsilon, bias, heads=heads)

    def linear(self, x: Value, name: str, rows: int, *, scale: float = 1.0) -> Value:
        """x times the tensor `name`.weight, plus `name`.bias where the file has one."""
        self._check_unscaled(name)
        weight = matrix(self.file, f"{name}.weight", rows, x.width)
        return self.g.linear(x, weight, optional_vector(self.file, f"{name}.bias", rows), scale=scale)

    def _check_unscaled(self, name: str) -> None:
        """Some NVFP4 files scale whole matrices by a number beside them; ignored, it would garble every answer."""
        if self.has(f"{name}.scale"):
            raise UnsupportedModelError(
                f"{self.file.path.name} scales the tensor '{name}.weight' by '{name}.scale', "
                "which Realm does not do yet.",
                "Choose another quantisation of the model.",
            )

    def linear_parts(self, x: Value, name: str, *rows: int) -> list[Value]:
        """As linear(), for a tensor that holds the rows of several matrices one after the other."""
        self._check_unscaled(name)
        whole = matrix(self.file, f"{name}.weight", sum(rows), x.width)
        bias = optional_vector(self.file, f"{name}.bias", sum(rows))
        values, first = [], 0
        for count in rows:
            part_bias = None if bias is None else Weight(bias.name, 1, count, first)
            values.append(self.g.linear(x, Weight(whole.name, count, x.width, first), part_bias))
            first += count
        return values

    def qkv(self, x: Value, layer: int) -> tuple[Value, Value, Value]:
        """Queries, keys and values, from three tensors or from one with the rows of all."""
        widths = (self.n_heads * self.head_width, self.n_kv_heads * self.head_width, self.n_kv_heads * self.value_width)
        if self.has(f"blk.{layer}.attn_qkv.weight"):
            q, k, v = self.linear_parts(x, f"blk.{layer}.attn_qkv", *widths)
        else:
            q, k, v = (self.linear(x, f"blk.{layer}.attn_{n}", w) for n, w in zip("qkv", widths, strict=True))
        return q, k, v

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        layer: int,
        rope: Rope | None,
        *,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Weight | None = None,
        output_scale: float = 1.0,
        cache: int | None = None,
    ) -> Value:
        """Attention and its output projection. cache: whose keys and values these are, if not the layer's own."""
        if window and not self.g.causal:
            raise UnsupportedModelError(
                f"{self.file.path.name} attends to both sides within a sliding window, which Realm does not do yet."
            )
        a = self.g.attention(
            q,
            k,
            v,
            layer=layer if cache is None else cache,
            n_heads=self.n_heads,
            scale=self.scale,
            rope=rope,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )
        return self.linear(a, f"blk.{layer}.attn_output", self.width, scale=output_scale)

    def gated_mlp(
        self,
        x: Value,
        layer: int,
        activation: Activation = Activation.SILU,
        *,
        width: int = 0,
        kind: str = "",
        output_scale: float = 1.0,
    ) -> Value:
        """down(activation(gate(x)) * up(x)); kind: what follows in the tensors' names, as _shexp.

        Where there is no gate tensor, the up tensor holds the rows of the gate and then its own.
        """
        width = width or self.feed_forward
        if self.has(f"blk.{layer}.ffn_gate{kind}.weight"):
            gate = self.linear(x, f"blk.{layer}.ffn_gate{kind}", width)
            up = self.linear(x, f"blk.{layer}.ffn_up{kind}", width)
        else:
            gate, up = self.linear_parts(x, f"blk.{layer}.ffn_up{kind}", width, width)
        gated = self.g.gate(gate, up, activation)
        return self.linear(gated, f"blk.{layer}.ffn_down{kind}", self.width, scale=output_scale)

    def plain_mlp(self, x: Value, layer: int, activation: Activation) -> Value:
        """down(activation(up(x)))"""
        up = self.linear(x, f"blk.{layer}.ffn_up", self.feed_forward)
        return self.linear(self.g.activate(up, activation), f"blk.{layer}.ffn_down", self.width)

    def experts(
        self,
        x: Value,
        layer: int,
        activation: Activation = Activation.SILU,
        *,
        width: int,
        gating: Gating = Gating.SOFTMAX,
        renormalise: bool,
        groups: int = 1,
        groups_used: int = 1,
    ) -> Value:
        """A mixture of gated feed-forward blocks of which each row uses a few. width: inside of one expert."""
        count = self.integer("expert_count", minimum=1, maximum=1 << 14)
        n_used = self.integer("expert_used_count", minimum=1, maximum=count)
        logits = self.linear(x, f"blk.{layer}.ffn_gate_inp", count)
        route = self.g.route(
            logits,
            n_used=n_used,
            gating=gating,
            bias=optional_vector(self.file, f"blk.{layer}.exp_probs_b.bias", count),
            renormalise=renormalise,
            scale=self.number("expert_weights_scale", 1.0) or 1.0,
            groups=groups,
            groups_used=groups_used,
        )

        def part(x: Value, name: str, rows: int, columns: int) -> Value:
            self._check_unscaled(f"blk.{layer}.{name}")
            weight = matrices(self.file, f"blk.{layer}.{name}.weight", count, rows, columns)
            bias = optional_vector(self.file, f"blk.{layer}.{name}.bias", count, rows)
            return self.g.expert_linear(x, route, weight, bias, count)

        if self.has(f"blk.{layer}.ffn_gate_up_exps.weight"):
            both = part(x, "ffn_gate_up_exps", 2 * width, self.width)
            gate = self.g.slice(both, 0, width, heads=n_used)
            up = self.g.slice(both, width, width, heads=n_used)
        else:
            gate = part(x, "ffn_gate_exps", width, self.width)
            up = part(x, "ffn_up_exps", width, self.width)
        down = part(self.g.gate(gate, up, activation), "ffn_down_exps", self.width, width)
        return self.g.expert_sum(down, route)

    def last_rows(self, layer: int, x: Value) -> Value:
        """x; in the last layer only the rows whose logits are wanted. Nothing after it may attend."""
        return self.g.select_rows(x) if layer == self.n_layers - 1 and not self._keeps_rows else x

    def logits(self, h: Value, *, scale: float = 1.0, norm: str = "output_norm") -> Value:
        """The last norm and the output matrix, which is the token table where the file has none; for encoders only the
        norm."""
        h = self.g.hidden = self.norm(h, norm)
        if not self.g.causal:
            return h
        if self._keeps_rows:
            self.g.kept = h
            h = self.g.hidden = self.g.select_rows(h)
        return self.head(h, "output", scale=scale)

    def head(self, h: Value, name: str, *, scale: float = 1.0) -> Value:
        """The matrix `name` that gives logits; the token table where the file has none of that name."""
        if self.has(f"{name}.weight"):
            return self.linear(h, name, self.g.n_vocab, scale=scale)
        return self.g.linear(h, self._table, optional_vector(self.file, f"{name}.bias", self.g.n_vocab), scale=scale)
