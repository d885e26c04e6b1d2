"""Adapters written as PEFT does, with random numbers, and as GGUF files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gguf.write import GGUFWriter, NewTensor, float32_key, string_key
from engine.quants import QuantType

MODULES = {
    "model.layers.0.self_attn.q_proj": (256, 256),
    "model.layers.1.mlp.down_proj": (256, 256),
    "model.embed_tokens": (448, 256),
    "lm_head": (448, 256),
}
"""Some of each kind of the fixtures' tiny llama."""


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, values in tensors.items():
        dtype = {"f4": "F32", "f2": "F16", "u2": "BF16"}[values.dtype.str[1:]]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values()))


def write_gguf(path: Path, tensors: Mapping[str, NDArray[Any]], keys: Sequence[bytes]) -> Path:
    """All tensors in F32."""
    f32 = QuantType.by_name("F32")
    with GGUFWriter(path, keys, [NewTensor(name, values.shape, f32) for name, values in tensors.items()], 32) as writer:
        for values in tensors.values():
            writer.write(values.astype(np.float32).tobytes())
    return path


def write_gguf_adapter(path: Path, architecture: str, tensors: Mapping[str, NDArray[Any]], alpha: float = 1.0) -> Path:
    """tensors: by names that end in .lora_a and .lora_b."""
    keys = [
        string_key("general.architecture", architecture),
        string_key("general.type", "adapter"),
        string_key("adapter.type", "lora"),
        float32_key("adapter.lora.alpha", alpha),
    ]
    return write_gguf(path, tensors, keys)


def write_peft(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    size: float = 0.3,
    extra: Mapping[str, NDArray[Any]] | None = None,
    **config: Any,
) -> Path:
    """shapes: module -> (rows, columns) of the matrix that it acts on. size: of what is added, beside a typical y.
    extra: further tensors of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        a = random.standard_normal((rank, columns)) / np.sqrt(columns)
        b = random.standard_normal((rows, rank)) * size / np.sqrt(rank) * rank / alpha
        if module.endswith("embed_tokens"):  # there a row of the table is a column of A
            a, b = random.standard_normal((rank, rows)), b[:1].repeat(columns, 0) * random.standard_normal((columns, 1))
            names = ("lora_embedding_A", "lora_embedding_B")
        else:
            names = ("lora_A.weight", "lora_B.weight")
        for name, values in zip(names, (a, b), strict=True):
            tensors[f"base_model.model.{module}.{name}"] = values.astype(np.float32)
    write_safetensors(folder / "adapter_model.safetensors", {**tensors, **(extra or {})})
    targets = sorted({module.rpartition(".")[2] for module in shapes})
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets,
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
