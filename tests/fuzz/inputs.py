"""Sound files to begin with: small ones made here, and the reference's tiny models and vocabularies where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from engine.quants.types import QUANT_TYPES
from tests.fuzz.content import Content, taken_apart
from tests.gguf.builder import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, Array, Model, Tensor, small_model

_MOST_BYTES = 5_000_000
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m['content'] | trim }}"
    "{% else %}<|other|>{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TYPE_BYTES = {quant.id: (quant.block_size, quant.block_bytes) for quant in QUANT_TYPES.values()}


def fixtures_folder() -> Path:
    project = Path(__file__).resolve().parent.parent.parent
    return Path(os.environ.get("REALM_FIXTURES") or project.parent / "shared" / "fixtures")


def sources() -> list[tuple[str, Content]]:
    """Named files, in an order that does not change. The small ones are listed more than once: they are quick."""
    small = [("small", bytes(small_model()))]
    small += [(f"llama-{kind}", bytes(_llama(kind))) for kind in ("llama", "gpt2", "bert", "t5")]
    found = [(name, taken_apart(data, _TYPE_BYTES)) for name, data in small] * 4
    folder = fixtures_folder()
    paths = [*sorted((folder / "tiny_models").glob("*.gguf")), folder / "tokenizers" / "ggml-vocab-llama-spm.gguf"]
    for path in paths:
        if path.is_file() and path.stat().st_size < _MOST_BYTES:
            found.append((path.stem, taken_apart(path.read_bytes(), _TYPE_BYTES)))
    return found


def _llama(tokenizer: str) -> Model:
    """A llama of two layers that runs, with a vocabulary of its kind and a chat template."""
    width, heads, kv_heads, inner, layers = 32, 4, 2, 64, 2
    texts: list[object] = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    types: list[object] = [2, 3, 3, 3, 4]
    if tokenizer == "gpt2":
        texts += [chr(code) for code in range(33, 127)] + ["Ġ", "Ġa", "he", "hel", "ll"]
    elif tokenizer == "bert":
        texts += ["[CLS]", "[SEP]", "▁hello", "▁a", "b", "c", "lo"]
    else:
        texts += [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁hello", "he", "ll", "o", "▁a"]
    types += [6 if str(text).startswith("<0x") else 1 for text in texts[5:]]
    keys: dict[str | bytes, tuple[int, object]] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "Fuzz"),
        "llama.context_length": (UINT32, 64),
        "llama.embedding_length": (UINT32, width),
        "llama.block_count": (UINT32, layers),
        "llama.feed_forward_length": (UINT32, inner),
        "llama.attention.head_count": (UINT32, heads),
        "llama.attention.head_count_kv": (UINT32, kv_heads),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
        "llama.rope.freq_base": (FLOAT32, 10000.0),
        "llama.rope.dimension_count": (UINT32, width // heads),
        "llama.vocab_size": (UINT32, len(texts)),
        "tokenizer.ggml.model": (STRING, tokenizer),
        "tokenizer.ggml.pre": (STRING, "default"),
        "tokenizer.ggml.tokens": (ARRAY, Array(STRING, texts)),
        "tokenizer.ggml.scores": (ARRAY, Array(FLOAT32, [-float(i) for i in range(len(texts))])),
        "tokenizer.ggml.token_type": (ARRAY, Array(INT32, types)),
        "tokenizer.ggml.merges": (ARRAY, Array(STRING, ["h e", "he l", "l l", "Ġ a"])),
        "tokenizer.ggml.bos_token_id": (UINT32, 1),
        "tokenizer.ggml.eos_token_id": (UINT32, 2),
        "tokenizer.ggml.unknown_token_id": (UINT32, 0),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
        "tokenizer.ggml.add_space_prefix": (BOOL, True),
        "tokenizer.chat_template": (STRING, _TEMPLATE),
    }
    rng = np.random.default_rng(1)

    def matrix(name: str, rows: int, columns: int, kind: str) -> Tensor:
        values = rng.standard_normal((rows, columns)).astype(np.float32) / 8
        if kind == "F32":
            return Tensor(name, [columns, rows], 0, values.tobytes())
        quant = QUANT_TYPES[kind]
        rows_of_bytes = rng.integers(0, 256, (rows, quant.row_bytes(columns)), np.uint8)
        rows_of_bytes[:, 1 :: quant.block_bytes] = 0x20  # small scales
        return Tensor(name, [columns, rows], quant.id, rows_of_bytes.tobytes())

    def vector(name: str, length: int) -> Tensor:
        return Tensor(name, [length], 0, np.ones(length, np.float32).tobytes())

    tensors = [matrix("token_embd.weight", len(texts), width, "F32"), vector("output_norm.weight", width)]
    kv_width = width // heads * kv_heads
    for layer in range(layers):
        blk = f"blk.{layer}."
        tensors += [
            vector(blk + "attn_norm.weight", width),
            matrix(blk + "attn_q.weight", width, width, "Q4_0"),
            matrix(blk + "attn_k.weight", kv_width, width, "F32"),
            matrix(blk + "attn_v.weight", kv_width, width, "F32"),
            matrix(blk + "attn_output.weight", width, width, "F32"),
            vector(blk + "ffn_norm.weight", width),
            matrix(blk + "ffn_gate.weight", inner, width, "Q8_0"),
            matrix(blk + "ffn_up.weight", inner, width, "F32"),
            matrix(blk + "ffn_down.weight", width, inner, "F32"),
        ]
    return Model(keys=keys, tensors=tensors)
