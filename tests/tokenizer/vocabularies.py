"""Small vocabularies as the metadata of a file, and the reference's vocabularies by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from engine.tokenizer.encoders import CHAR_OF_BYTE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CONTROL_TEXTS = ("<|im_start|>", "<|im_end|>", "<s>", "<|tool|>")

REAL_MODELS = {
    "gemma3-270m": "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "tinyllama-1.1b": "tinyllama-1.1b-chat-v1.0.IQ2_XXS.gguf",
}


@dataclass
class FakeFile:
    metadata: Mapping[str, Any]


def bpe_metadata(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """All bytes, a few merges, four control tokens and one user-defined token."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "i m", "im _", "< |"]
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = [*CHAR_OF_BYTE, *joined, *CONTROL_TEXTS, "<think>"]
    types = [NORMAL] * (len(tokens) - 5) + [CONTROL] * 4 + [USER_DEFINED]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
    }
    return changed(metadata, changes)


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    words = ["▁", "▁hello", "▁he", "he", "ll", "llo", "hello", "l", "o", "h", "e", "<", ">", "s", "<s", "</"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(words)]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(i) for i in range(len(words))], dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return changed(metadata, changes)


def changed(metadata: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes keys of `tokenizer.ggml.`; None takes one away."""
    for name, value in changes.items():
        key = "tokenizer.ggml." + name
        if value is None:
            metadata.pop(key, None)
        else:
            metadata[key] = value
    return metadata


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(FakeFile(metadata))


def read_tokenizer(path: Path) -> Tokenizer:
    with GGUFFile.open(path) as file:
        return Tokenizer.from_gguf(file)
