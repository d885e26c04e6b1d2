"""The customary mixes of k-quants: which tensors of a Q4_K_M file are more than Q4_K.

The rules are those that llama.cpp follows without an importance matrix, so that a mix means the same here as there:
values and the way down of the feed-forward lose most from rounding, in the first, the last and every third layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIXES = {  # name -> (the type that most matrices get, general.file_type)
    "Q3_K_S": ("Q3_K", 11),
    "Q3_K_M": ("Q3_K", 12),
    "Q3_K_L": ("Q3_K", 13),
    "Q4_K_S": ("Q4_K", 14),
    "Q4_K_M": ("Q4_K", 15),
    "Q5_K_S": ("Q5_K", 16),
    "Q5_K_M": ("Q5_K", 17),
}

_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")


def is_value_projection(name: str) -> bool:
    """Whether the matrix makes attention's values (alone, with queries and keys, or out of a latent)."""
    return any(part in name for part in _VALUES)


@dataclass
class Mix:
    """Chooses the types of one model's matrices; to be asked in the order of their layers.

    n_values: value projections in the model; n_layers: blocks; n_experts: 0 or 1 for a dense model.
    tied: the token embedding is the output matrix too.
    """

    name: str
    architecture: str
    n_layers: int
    n_experts: int
    n_values: int
    tied: bool
    large_llama: bool  # 80 layers that share their keys and values between heads
    _value: int = 0
    _down: int = 0

    def type_of(self, name: str, row: int, block: int) -> str:
        """The type of a matrix with rows of `row` values, before its fallback. block: block size of the main type."""
        main = MIXES[self.name][0]
        falcon = self.architecture == "falcon"
        if name == "output.weight" or (self.tied and is_token_embedding(name)):
            return "Q8_0" if falcon or row % block else "Q6_K"
        if is_value_projection(name):
            return self._value_type(main)
        if "attn_k.weight" in name and self.n_experts == 8:
            return "Q8_0"
        if "attn_output.weight" in name:
            return self._output_type(main, falcon)
        if "ffn_down" in name:
            return self._down_type(name, main, falcon)
        return main

    def _value_type(self, main: str) -> str:
        index = self._value
        self._value += 1
        kind = main
        if self.name == "Q3_K_M":
            kind = "Q5_K" if index < 2 else "Q4_K"
        elif self.name == "Q3_K_L":
            kind = "Q5_K"
        elif self.name in ("Q4_K_M", "Q5_K_M") and _more_bits(index, self.n_values):
            kind = "Q6_K"
        elif self.name == "Q4_K_S" and index < 4:
            kind = "Q5_K"
        if self.large_llama and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.n_experts == 8 else kind

    def _output_type(self, main: str, falcon: bool) -> str:
        if falcon:
            return "Q4_K" if self.name == "Q3_K_L" else main
        if self.n_experts == 8:
            return "Q5_K" if self.name in ("Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M") else main
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.name, main)

    def _down_type(self, name: str, main: str, falcon: bool) -> str:
        layer, n = self._down, self.n_layers
        self._down += 1
        if self.n_experts > 1 and (match := _LAYER.match(name)):  # there may be several in a layer
            layer = int(match[1])
        more = _more_bits(layer, n)
        match self.name:
            case "Q3_K_M":
                return "Q5_K" if layer < n // 16 else "Q4_K" if more or not falcon else "Q3_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon:
                return "Q6_K" if layer < n // 16 else "Q5_K" if more else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if more:
                return "Q6_K"
            case "Q4_K_S" if not falcon and layer < n // 8:
                return "Q5_K"
        return main


def is_token_embedding(name: str) -> bool:
    return name in ("token_embd.weight", "per_layer_token_embd.weight")


def _more_bits(layer: int, n_layers: int) -> bool:
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
