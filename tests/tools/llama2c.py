"""Converts a legacy checkpoint of llama2.c to GGUF: `python -m tests.tools.llama2c IN.bin VOCABULARY.gguf OUT.gguf`.

The vocabulary comes from a file that holds one, as checkpoints hold none. Source of the layout: the README and run.c of
llama2.c (MIT): seven int32 (width, feed-forward, layers, heads, key-value heads, vocabulary, context), then float32
tensors, each kind for all layers at once. Weights stay float32; rope turns neighbouring pairs, as ggml's llama does.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.gguf import GGUFFile
from engine.gguf.write import GGUFWriter, NewTensor, uint32_key
from engine.quants import QUANT_TYPES

_STRING, _FLOAT32 = 8, 6


def convert(checkpoint: Path, vocabulary: Path, out: Path) -> None:
    width, inner, layers, heads, kv_heads, n_vocab, context = np.fromfile(checkpoint, "<i4", 7).tolist()
    values: NDArray[np.float32] = np.fromfile(checkpoint, "<f4", offset=28)
    tied, n_vocab = n_vocab > 0, abs(n_vocab)
    kv_width = width // heads * kv_heads
    place = 0

    def take(*shape: int) -> NDArray[np.float32]:
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return values[place - size : place].reshape(shape)

    tensors = {"token_embd.weight": take(n_vocab, width)}
    for name, shape in (
        ("attn_norm", (width,)),
        ("attn_q", (width, width)),
        ("attn_k", (kv_width, width)),
        ("attn_v", (kv_width, width)),
        ("attn_output", (width, width)),
        ("ffn_norm", (width,)),
        ("ffn_gate", (inner, width)),
        ("ffn_down", (width, inner)),
        ("ffn_up", (inner, width)),
    ):
        for layer, weights in enumerate(take(layers, *shape)):
            tensors[f"blk.{layer}.{name}.weight"] = weights
    tensors["output_norm.weight"] = take(width)
    take(2, context, width // heads // 2)  # cosines and sines
    tensors["output.weight"] = tensors["token_embd.weight"] if tied else take(n_vocab, width)
    with GGUFFile.open(vocabulary) as file:
        keys = [
            _key("general.architecture", _STRING, struct.pack("<Q", 5) + b"llama"),
            uint32_key("llama.context_length", context),
            uint32_key("llama.embedding_length", width),
            uint32_key("llama.feed_forward_length", inner),
            uint32_key("llama.block_count", layers),
            uint32_key("llama.attention.head_count", heads),
            uint32_key("llama.attention.head_count_kv", kv_heads),
            uint32_key("llama.rope.dimension_count", width // heads),
            _key("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
            *(file.key_bytes(key) for key in file.metadata if key.startswith("tokenizer.")),
        ]
    f32 = QUANT_TYPES["F32"]
    with GGUFWriter(out, keys, [NewTensor(name, w.shape, f32) for name, w in tensors.items()], 32) as writer:
        for weights in tensors.values():
            writer.write(weights.tobytes())


def _key(name: str, value_type: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", value_type) + value


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:4]))
