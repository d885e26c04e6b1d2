"""GGUF files whose last layer predicts further tokens, with the vocabulary of a tiny model of the reference data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.drafts.speculation import Pace, Planned, Speculation
from engine.drafts.worth import Worth
from engine.gguf import GGUFFile
from engine.gguf.write import GGUFWriter, NewTensor, float32_key, string_key, uint32_key
from engine.quants import QuantType

LAYERS, HEADS, HEAD, EXPERTS, EXPERT_FF = 2, 2, 32, 4, 32

Tensors = dict[str, NDArray[np.float32]]


def random_glm(n_vocab: int, width: int, *, seed: int = 3, scale: float = 1.0) -> Tensors:
    """The tensors of a glm4moe that carries a layer, without table, norm and head of its own. scale: of what attention
    and experts add."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}

    def add(name: str, *shape: int, size: float = 1.0) -> None:
        values = random.standard_normal(shape) * size / np.sqrt(shape[-1])
        tensors[name] = (1 + 0.1 * random.standard_normal(shape) if "norm" in name else values).astype(np.float32)

    add("token_embd.weight", n_vocab, width, size=4.0)
    add("output.weight", n_vocab, width, size=4.0)
    add("output_norm.weight", width)
    for layer in range(LAYERS + 1):
        for name in ("attn_norm", "post_attention_norm"):
            add(f"blk.{layer}.{name}.weight", width)
        for name in "qkv":
            add(f"blk.{layer}.attn_{name}.weight", HEADS * HEAD, width)
        add(f"blk.{layer}.attn_output.weight", width, HEADS * HEAD, size=scale)
        add(f"blk.{layer}.ffn_gate_inp.weight", EXPERTS, width)
        add(f"blk.{layer}.exp_probs_b.bias", EXPERTS)
        for kind, stack in (("_exps", (EXPERTS,)), ("_shexp", ())):
            add(f"blk.{layer}.ffn_gate{kind}.weight", *stack, EXPERT_FF, width)
            add(f"blk.{layer}.ffn_up{kind}.weight", *stack, EXPERT_FF, width)
            add(f"blk.{layer}.ffn_down{kind}.weight", *stack, width, EXPERT_FF, size=scale)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        add(f"blk.{LAYERS}.nextn.{name}.weight", width)
    add(f"blk.{LAYERS}.nextn.eh_proj.weight", width, 2 * width)
    return tensors


def rigged_glm(n_vocab: int, *, from_rows: bool) -> tuple[Tensors, NDArray[np.int64]]:
    """A model whose next token depends on the last one alone, and a layer that knows it; also which follows which.

    Token t is column t of a row and nothing is added to it; the output sees `following[t]` in it. from_rows: the layer
    makes its guess from the model's row alone, else from the token alone.
    """
    width = -(-n_vocab // 32) * 32
    tensors = random_glm(n_vocab, width, scale=0.0)
    order = np.random.default_rng(5).permutation(n_vocab)
    following = np.empty(n_vocab, np.int64)
    following[order] = np.roll(order, -1)  # one cycle: an answer repeats nothing that it could be looked up in
    embedding = np.zeros((n_vocab, width), np.float32)
    embedding[np.arange(n_vocab), np.arange(n_vocab)] = 1.0
    output = np.zeros_like(embedding)
    output[following, np.arange(n_vocab)] = 1.0
    tensors |= {"token_embd.weight": embedding, "output.weight": output}
    for name in [name for name in tensors if "norm.weight" in name]:
        tensors[name] = np.ones_like(tensors[name])
    step = np.zeros((width, width), np.float32)
    step[following, np.arange(n_vocab)] = 1.0  # from the row of a token to that of the one that follows
    nothing = np.zeros_like(step)
    parts = (nothing, step) if from_rows else (np.eye(width, dtype=np.float32), nothing)
    tensors[f"blk.{LAYERS}.nextn.eh_proj.weight"] = np.concatenate(parts, axis=1)
    return tensors, following


def guessing_glm(n_vocab: int) -> Tensors:
    """A model whose next token depends on the last one more than on those before, and a layer that sees that one: its
    guesses are right a little more often than not."""
    tensors, name = random_glm(n_vocab, 64, scale=0.15), f"blk.{LAYERS}.nextn"
    eye = np.eye(64, dtype=np.float32)
    tensors[f"{name}.eh_proj.weight"] = np.concatenate([4.0 * eye, 0.0 * eye], axis=1)
    tensors[f"{name}.enorm.weight"] = np.ones(64, np.float32)
    tensors[f"{name}.shared_head_norm.weight"] = tensors["output_norm.weight"]
    return tensors


def check_guesses(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """So many guesses are checked whether they pay or not."""
    choose = Speculation._choose

    def check_all(self: Speculation, planned: list[Planned], n_plain: int, spent: float) -> None:
        for one in planned:
            one.probe = min(most, len(one.guess.tokens))
        choose(self, planned, n_plain, spent)

    monkeypatch.setattr(Speculation, "_choose", check_all)
    monkeypatch.setattr(Worth, "choose", lambda self, sequences: [self._first(s) for s in sequences])


def check_every_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses of models and layers are checked whether they pay or not; nothing is looked up in the text instead."""
    check_guesses(monkeypatch, 5)
    monkeypatch.setattr(Pace, "rests", lambda self: False)
    monkeypatch.setattr(Speculation, "_looked_up", lambda self, sequences, n_plain, resting: [])


def write(path: Path, vocabulary: Path, tensors: Tensors, **keys: Any) -> Path:
    """Writes a glm4moe of these tensors. vocabulary: the file that gives it. keys: in place of the usual ones."""
    width = tensors["token_embd.weight"].shape[1]
    numbers = {
        "context_length": 2048,
        "embedding_length": width,
        "block_count": LAYERS + 1,
        "feed_forward_length": 64,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.dimension_count": HEAD // 2,
        "expert_count": EXPERTS,
        "expert_used_count": 2,
        "expert_feed_forward_length": EXPERT_FF,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "nextn_predict_layers": 1,
        **keys,
    }
    with GGUFFile.open(vocabulary) as file:
        entries = [file.key_bytes(key) for key in file.metadata if key.startswith("tokenizer.")]
    entries += [string_key("general.architecture", "glm4moe"), string_key("general.name", path.stem)]
    entries += [uint32_key(f"glm4moe.{name}", value) for name, value in numbers.items()]
    entries.append(float32_key("glm4moe.attention.layer_norm_rms_epsilon", 1e-5))
    f32 = QuantType.by_name("F32")
    with GGUFWriter(path, entries, [NewTensor(n, t.shape, f32) for n, t in tensors.items()], 32) as writer:
        for tensor in tensors.values():
            writer.write(np.ascontiguousarray(tensor, np.float32).tobytes())
    return path
