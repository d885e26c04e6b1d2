"""Which type each tensor of a model gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from engine.errors import RequestError, UnsupportedModelError
from engine.gguf import GGUFFile, TensorInfo
from engine.gguf.write import NewTensor
from engine.quantize.mixes import MIXES, Mix, is_token_embedding, is_value_projection
from engine.quants import QUANT_TYPES, QuantType
from engine.quants.decode import DECODERS
from engine.quants.encode import ENCODERS

_FILE_TYPES = {  # general.file_type of a file whose matrices all have one type
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K": 14,
    "Q4_1": 3,
    "Q4_0": 2,
    "Q3_K": 11,
    "Q2_K": 10,
}
TARGETS: Mapping[str, int] = MappingProxyType(_FILE_TYPES | {name: file_type for name, (_, file_type) in MIXES.items()})
"""What a model can be quantised to: types and mixes -> general.file_type."""

_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_PLAIN = frozenset({"F32", "F16", "BF16"})
_INTEGERS = frozenset({"I8", "I16", "I32", "I64", "F64"})

# Small or touchy matrices that llama.cpp leaves as they are: norms, routers, positions, convolutions, RWKV's mixing.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj"
    r"|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
    r"|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class PlannedTensor:
    source: TensorInfo
    type: QuantType

    @property
    def new(self) -> NewTensor:
        return NewTensor(self.source.name, self.source.shape, self.type)

    @property
    def is_copied(self) -> bool:
        return self.type is self.source.type


@dataclass(frozen=True)
class Plan:
    """What quantising will do. notes: sentences on what the person may not expect."""

    target: str
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...]

    @property
    def file_type(self) -> int:
        return TARGETS[self.target]


def plan_quantisation(file: GGUFFile, target: str, *, output_type: str | None = None) -> Plan:
    """The type of every tensor, in the file's order.

    target: of TARGETS, in capitals or not. A type is given to every matrix; a mix follows llama.cpp's rules. Matrices
    whose rows are no whole number of blocks fall back as they do there, and to F16 where that does not fit either.
    output_type: for the output matrix (the token embedding, where that serves as both).
    Raises RequestError for a name that is no target, UnsupportedModelError for a file without matrices.
    """
    target = _known(target, TARGETS, "quantise to")
    main = QUANT_TYPES[MIXES[target][0] if target in MIXES else target]
    output = None if output_type is None else QUANT_TYPES[_known(output_type, ENCODERS, "give the output matrix")]
    tied = "output.weight" not in file.tensors
    mix = _mix(file, target, tied) if target in MIXES else None
    types: dict[str, QuantType] = {}
    fallen: dict[tuple[str, str], list[str]] = {}
    for info in sorted(file.tensors.values(), key=_layer):
        types[info.name] = info.type
        if not _is_quantised(info):
            continue
        row = info.shape[-1]
        wanted = main
        if mix is not None:
            wanted = QUANT_TYPES[mix.type_of(info.name, row, main.block_size)]
        if output is not None and (info.name == "output.weight" or (tied and is_token_embedding(info.name))):
            wanted = output
        types[info.name] = fitting = _fitting(wanted, row)
        if fitting is not wanted:
            fallen.setdefault((wanted.name, fitting.name), []).append(info.name)
    tensors = tuple(PlannedTensor(info, types[info.name]) for info in file.tensors.values())
    if not any(_is_quantised(info) for info in file.tensors.values()):
        raise UnsupportedModelError(
            f"{file.path.name} holds no matrices to quantise.", "It may hold a vocabulary only; choose a whole model."
        )
    return Plan(target, tensors, (*_lossy(tensors), *_fallback_notes(fallen)))


def _known(name: str, choices: Mapping[str, object], what: str) -> str:
    if name.upper() not in choices:
        raise RequestError(f"Realm cannot {what} {name!r}.", f"Choose of {', '.join(choices)}.")
    return name.upper()


def _mix(file: GGUFFile, target: str, tied: bool) -> Mix:
    architecture = file.architecture
    layers = file.int(f"{architecture}.block_count", minimum=1, maximum=1 << 12)
    heads = file.ints(f"{architecture}.attention.head_count", None, count=layers)
    kv_heads = file.ints(f"{architecture}.attention.head_count_kv", None, count=layers)
    shared = heads is not None and kv_heads is not None and bool((heads != kv_heads).any())
    return Mix(
        target,
        architecture,
        n_layers=layers,
        n_experts=file.int(f"{architecture}.expert_count", 0, minimum=0),
        n_values=sum(is_value_projection(name) for name in file.tensors),
        tied=tied,
        large_llama=architecture == "llama" and layers == 80 and shared,
    )


def _layer(info: TensorInfo) -> int:
    match = _LAYER.match(info.name)
    return int(match[1]) if match else -1


def _is_quantised(info: TensorInfo) -> bool:
    """Whether the tensor is a matrix (or a stack of matrices) whose type may change."""

    matrix = any(size > 1 for size in info.shape[:-1])
    return matrix and info.name.endswith("weight") and info.type.name not in _INTEGERS and not _KEPT.search(info.name)


def _fitting(wanted: QuantType, row: int) -> QuantType:
    if row % wanted.block_size == 0:
        return wanted
    smaller = _FALLBACKS.get(wanted.name)
    if smaller is not None and row % QUANT_TYPES[smaller].block_size == 0:
        return QUANT_TYPES[smaller]
    return QUANT_TYPES["F16"]


def _lossy(tensors: tuple[PlannedTensor, ...]) -> list[str]:
    lossy = {t.source.type.name for t in tensors if not t.is_copied and t.source.type.name not in _PLAIN}
    assert lossy <= set(DECODERS)
    if not lossy:
        return []
    return [
        f"The model is already quantised ({', '.join(sorted(lossy))}): what that lost stays lost. "
        "A file in F16, BF16 or F32 gives better results."
    ]


def _fallback_notes(fallen: dict[tuple[str, str], list[str]]) -> list[str]:
    return [
        f"{len(names)} {'matrix gets' if len(names) == 1 else 'matrices get'} {instead} where {wanted} was asked for, "
        f"as {'its' if len(names) == 1 else 'their'} rows are no multiple of {QUANT_TYPES[wanted].block_size} values: "
        f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for (wanted, instead), names in fallen.items()
    ]
