"""Adapters in GGUF files (general.type = adapter).

Keys and names: llama.cpp's convert_lora_to_gguf.py. A matrix W.weight has W.weight.lora_a [rank, columns] and
W.weight.lora_b [rows, rank]; for the embedding table they are [n_vocab, rank] and [width, rank], for a stack of experts
[experts, rank, columns] and [experts, rows, rank], for one of heads the same or one A for all of them. The scale is
adapter.lora.alpha / rank.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.adapters.adapter import DAMAGED, MAX_ALPHA, MERGE, Adapter, Array, low_rank
from engine.adapters.describe import describe
from engine.errors import AdapterError, ModelFileError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.quants import dequantize

MOST_SHARED = 1 << 26
"""Numbers of an A that many heads share, times the number of heads: DeepSeek V3 with a rank of 64 has 4 million."""

_SUFFIXES = (".weight.lora_a", ".weight.lora_b")


def read_gguf_adapter(path: Path) -> Adapter:
    """Reads and checks an adapter. Raises AdapterError, or ModelFileError where a key of the file is wrong."""
    with _open(path) as file:
        _check_kind(file)
        architecture = file.architecture
        alpha = _alpha(file)
        halves: dict[str, dict[str, Array]] = {}
        size = 0
        for name in file.tensors:
            base, suffix = _split(path, name)
            halves.setdefault(base, {})[suffix] = _values(file, name)
            size += file.tensors[name].nbytes
        if not halves:
            raise AdapterError(f"{path.name} holds no tensors, so it changes nothing.", DAMAGED)
        matrices = {}
        for base, found in halves.items():
            if len(found) < 2:
                lacks = "B (.lora_b)" if _SUFFIXES[0] in found else "A (.lora_a)"
                raise AdapterError(f"{path.name} has no matrix {lacks} for {base!r}.", DAMAGED)
            a, b = (found[suffix] for suffix in _SUFFIXES)
            if b.ndim == 3 and (a.ndim == 2 or len(a) == 1):
                a = _for_all(path, base, a, len(b))
            matrices[base] = low_rank(path, base, a, b, alpha / max(1, b.shape[-1]))
        info = describe(
            path,
            matrices,
            name=_text(file, "general.name") or path.stem,
            kind="gguf",
            architecture=architecture,
            base_model=_text(file, "general.base_model.0.name"),
            alpha=alpha,
            size_bytes=size,
        )
        return Adapter(info, matrices, from_peft=False)


def _open(path: Path) -> GGUFFile:
    try:
        return GGUFFile.open(path)
    except (ModelFileError, UnsupportedModelError) as error:
        raise AdapterError(
            error.message, "The adapter is damaged, or the file is none: download it again or choose another."
        ) from error


def _check_kind(file: GGUFFile) -> None:
    path = file.path
    kind = file.metadata.get("general.type")
    if kind != "adapter":
        is_model = kind in (None, "model")
        raise AdapterError(
            f"{path.name} is no adapter: its key general.type is "
            f"{'missing' if kind is None else repr(kind)[:60]}, not 'adapter'.",
            "Load it as a model." if is_model and "token_embd.weight" in file.tensors else "Choose another file.",
        )
    adapter_type = file.metadata.get("adapter.type")
    if adapter_type != "lora":
        raise AdapterError(
            f"{path.name} is an adapter of the type {adapter_type!r:.60} (adapter.type); Realm applies 'lora' only.",
            "Choose another file.",
        )
    invoked = [key for key in file.metadata if key.startswith("adapter.alora.")]
    if invoked:
        raise AdapterError(
            f"{path.name} is an activated LoRA ({invoked[0]}), which acts from certain tokens on; "
            "Realm applies plain LoRA only.",
            "Choose another file.",
        )


def _alpha(file: GGUFFile) -> float:
    if "adapter.lora.alpha" not in file.metadata:
        raise AdapterError(
            f"{file.path.name} lacks the key adapter.lora.alpha, so nobody can tell how strongly it acts.", DAMAGED
        )
    try:
        alpha = file.float("adapter.lora.alpha")
    except ModelFileError as error:
        raise AdapterError(error.message, DAMAGED) from error
    if not 0 < alpha <= MAX_ALPHA:
        raise AdapterError(
            f"{file.path.name}: the key adapter.lora.alpha is {alpha:g}, but it has to be above 0 and at most "
            f"{MAX_ALPHA:g}.",
            DAMAGED,
        )
    return alpha


def _split(path: Path, name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    raise AdapterError(
        f"{path.name} holds the tensor {name!r}, which is no part of a LoRA: names end in "
        f"{_SUFFIXES[0]} or {_SUFFIXES[1]}, and one that replaces a whole tensor of the model is not applied.",
        MERGE,
    )


def _for_all(path: Path, name: str, a: Array, count: int) -> Array:
    """One A for all matrices of a stack, as of heads that had been one matrix, once for each."""
    if count * a.size > MOST_SHARED:
        raise AdapterError(
            f"{path.name}: the A matrix for {name!r}, {list(a.shape)}, cannot be meant for {count} heads.", DAMAGED
        )
    return np.broadcast_to(a, (count, *a.shape[-2:]))


def _values(file: GGUFFile, name: str) -> Array:
    info = file.tensors[name]
    if info.type.name in ("I8", "I16", "I32", "I64", "F64"):
        raise AdapterError(
            f"{file.path.name}: the tensor {name!r} is of the type {info.type.name}, which no weight is.", DAMAGED
        )
    values: Array = dequantize(info.type, file.data(name)).astype(np.float32, copy=False).reshape(info.shape)
    # a matrix with one row may have lost that dimension on the way
    return values.reshape(1, -1) if values.ndim == 1 and name.endswith(_SUFFIXES[0]) else values


def _text(file: GGUFFile, key: str) -> str:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else ""
