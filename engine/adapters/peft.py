"""Adapters as the PEFT library saves them: adapter_config.json and adapter_model.safetensors.

What the keys of the configuration mean: peft/tuners/lora/config.py. Everything in it that changes what an adapter
computes is either done here or refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.adapters.adapter import DAMAGED, MAX_ALPHA, MAX_RANK, MERGE, Adapter, Array, LowRank, low_rank, stacked
from engine.adapters.describe import describe
from engine.adapters.modules import expert_of, layer_of, tensor_name
from engine.adapters.parameters import parameters_of, stacks, wrapped_experts
from engine.adapters.safetensors import SafetensorsFile
from engine.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

MAX_CONFIG_BYTES = 16 << 20

_VARIANTS = {
    "use_dora": "DoRA, which also scales each output by a learned magnitude",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "LoRA with biases of its own",
    "layer_replication": "layers that are used several times",
    "modules_to_save": "whole trained copies of modules, which replace those of the model",
    "trainable_token_indices": "rows of tokens that replace those of the model",
    "alora_invocation_tokens": "an activated LoRA, which acts from certain tokens on",
    "arrow_config": "a router between adapters",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "a Megatron layout",
}
"""Keys that, when set, mean another computation than y += scale * B(Ax)."""

_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract the adapter's start from the model's own weights: it fits that changed model only."""

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?:lora_(?P<linear>[AB])(?:\.(?!weight$)[^.]+)?\.weight|lora_embedding_(?P<embedding>[AB])(?:\.[^.]+)?)"
)


_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.base_layer\.weight")
"""The model's own weights below an adapter; PEFT saves them where it acts on the embedding or the output."""


@dataclass(frozen=True)
class Config:
    """adapter_config.json, checked."""

    path: Path
    rank: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    targets: str | tuple[str, ...] | None
    parameters: tuple[str, ...]
    swaps_experts: bool
    excluded: tuple[str, ...]
    layers: frozenset[int] | None
    base_model: str
    tied: bool

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_matching(self.rank_pattern, module, self.path), self.rank)

    def scale_of(self, module: str) -> float:
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module, self.path), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_peft_adapter(path: Path) -> Adapter:
    """path: the folder, or one of the two files in it. Raises AdapterError."""
    folder = path if path.is_dir() else path.parent
    weights = path if path.is_file() and path.name != CONFIG else folder / WEIGHTS
    config_path = folder / CONFIG
    if not config_path.is_file():
        raise AdapterError(
            f"{folder} has no {CONFIG}, which says how strongly the adapter acts.", "Fetch the whole folder."
        )
    config = read_config(config_path)
    if not weights.is_file():
        pickles = sorted(folder.glob("adapter_model.bin"))
        raise AdapterError(
            f"{folder} has no {WEIGHTS}"
            + (
                f"; its {pickles[0].name} can run code when it is opened, and Realm does not read it."
                if pickles
                else "."
            ),
            f"Save the adapter as {WEIGHTS}." if pickles else "Fetch the whole folder.",
        )
    file = SafetensorsFile(weights)
    halves: dict[tuple[str, int | None], dict[str, Array]] = {}  # by tensor, and by expert where it is a stack
    modules: dict[tuple[str, int | None], str] = {}
    wrapped: dict[tuple[str, int], dict[str, Array]] = {}  # by module, and by how many are around it
    copies = {key for key in file.tensors if _COPY.fullmatch(key)}
    for key in (key for key in file.tensors if key not in copies):
        module, half, embedding = _split(weights, key)
        if config.parameters and not embedding and (experts := wrapped_experts(module)):
            _check_layer(config, weights, module)
            _put(weights, module, wrapped.setdefault(experts, {}), half, file.values(key))
            continue
        name, expert = _tensor(weights, key, module), expert_of(module)
        if embedding != (name == "token_embd"):
            raise AdapterError(
                f"{weights.name}: the tensor {key!r} has the form for "
                f"{'an embedding' if embedding else 'a matrix'}, which {module!r} is not.",
                DAMAGED,
            )
        _check_wanted(config, weights, module)
        values = file.values(key)
        values = values.T if embedding and half == "A" and values.ndim == 2 else values
        _put(weights, module, halves.setdefault((name, expert), {}), half, values)
        modules[name, expert] = module
    if not halves and not wrapped:
        raise AdapterError(f"{weights.name} holds no tensors, so it changes nothing.", DAMAGED)
    matrices: dict[str, LowRank] = {}
    single: dict[str, dict[int, LowRank]] = {}
    for (name, expert), found in halves.items():
        module = modules[name, expert]
        low = low_rank(weights, name, *_pair(weights, module, found), config.scale_of(module))
        if low.rank != config.rank_of(module):
            raise AdapterError(
                f"{weights.name} has the rank {low.rank} for {module!r}, but {CONFIG} says {config.rank_of(module)}; "
                "its strength would be wrong.",
                DAMAGED,
            )
        if expert is None:
            matrices[name] = low
        else:
            single.setdefault(name, {})[expert] = low
    copied = _copied(file, copies, modules, halves)
    _check_tied(config, modules.values())
    matrices |= {name: stacked(weights, name, experts) for name, experts in single.items()}
    parameters = _read_parameters(config, weights, wrapped)
    matrices |= parameters
    info = describe(
        path,
        matrices,
        name=folder.resolve().name if path.is_dir() or weights.name == WEIGHTS else weights.stem,
        kind="peft",
        architecture="",
        base_model=config.base_model,
        alpha=config.alpha,
        size_bytes=sum(entry.end - entry.begin for key, entry in file.tensors.items() if key not in copies),
        notes=(*_notes(config, list(modules.values())), *_copy_notes(copied)),
    )
    return Adapter(info, matrices, from_peft=True, parameters=frozenset(parameters), is_swapped=config.swaps_experts)


def _put(path: Path, module: str, found: dict[str, Array], half: str, values: Array) -> None:
    if half in found:
        raise AdapterError(f"{path.name} holds matrix {half} for {module!r} twice.", DAMAGED)
    found[half] = values


def _pair(path: Path, module: str, found: dict[str, Array]) -> tuple[Array, Array]:
    if len(found) < 2:
        raise AdapterError(f"{path.name} has no lora_{'B' if 'A' in found else 'A'} for {module!r}.", DAMAGED)
    return found["A"], found["B"]


def _read_parameters(
    config: Config, path: Path, wrapped: dict[tuple[str, int], dict[str, Array]]
) -> dict[str, LowRank]:
    matrices: dict[str, LowRank] = {}
    for module in dict.fromkeys(module for module, _ in wrapped):
        names = parameters_of(config.path, module, config.parameters)
        pairs = [_pair(path, module, found) for (of, _), found in wrapped.items() if of == module]
        ranks = {name: config.rank_of(f"{module}.{name}") for name in names}
        for name, (parameter, (a, b)) in zip(names, stacks(path, module, names, pairs, ranks).items(), strict=True):
            matrices[parameter] = low_rank(path, parameter, a, b, config.scale_of(f"{module}.{name}"))
    return matrices


def _copied(
    file: SafetensorsFile,
    copies: set[str],
    modules: Mapping[tuple[str, int | None], str],
    halves: Mapping[tuple[str, int | None], Mapping[str, Array]],
) -> list[str]:
    """The modules whose own weights the file repeats. Raises AdapterError for weights that belong to no LoRA of it."""
    places = {module: place for place, module in modules.items()}
    found = []
    for key in sorted(copies):
        match = _COPY.fullmatch(key)
        module = match["module"] if match else key
        if module not in places:
            _split(file.path, key.replace(".base_layer", ""))
        name, _ = places[module]
        a, b = (halves[places[module]][half] for half in ("A", "B"))
        own = (len(a), len(b)) if name == "token_embd" else (len(b), a.shape[-1])
        if file.tensors[key].shape != own:
            raise AdapterError(
                f"{file.path.name} repeats the weights of {module!r} with the shape {list(file.tensors[key].shape)}, "
                f"but its LoRA is for {' x '.join(map(str, own))}.",
                DAMAGED,
            )
        found.append(module)
    return found


def _copy_notes(modules: Sequence[str]) -> tuple[str, ...]:
    names = ", ".join(module.rpartition(".")[2] for module in modules)
    return (f"It repeats the model's own weights of {names}, which are not read.",) if modules else ()


def _split(path: Path, key: str) -> tuple[str, str, bool]:
    """The module, which half it is, and whether of an embedding."""
    if match := _KEY.fullmatch(key):
        return match["module"], match["linear"] or match["embedding"], match["embedding"] is not None
    if "lora_magnitude_vector" in key:
        raise AdapterError(
            f"{path.name} holds {key!r}: the adapter is a DoRA, which also scales each output; "
            "Realm applies plain LoRA only.",
            MERGE,
        )
    if "lora" not in key:
        raise AdapterError(
            f"{path.name} holds the tensor {key!r} whole, which replaces one of the model: a norm, or a module "
            "named in modules_to_save. Realm applies plain LoRA only.",
            MERGE,
        )
    raise AdapterError(
        f"{path.name} holds the tensor {key!r}, which is no part of a LoRA that Realm applies.",
        "Names end in .lora_A.weight, .lora_B.weight, .lora_embedding_A or .lora_embedding_B.",
    )


def _tensor(path: Path, key: str, module: str) -> str:
    name = tensor_name(module)
    if name is not None:
        return name
    raise AdapterError(f"{path.name}: {key!r} acts on {module!r}, a module that Realm applies no adapters to.", MERGE)


def _check_layer(config: Config, path: Path, module: str) -> None:
    layer = layer_of(module)
    if config.layers is not None and layer is not None and layer not in config.layers:
        raise AdapterError(
            f"{path.name} holds tensors for {module!r}, but layers_to_transform in {CONFIG} leaves layer {layer} out.",
            DAMAGED,
        )


def _check_wanted(config: Config, path: Path, module: str) -> None:
    _check_layer(config, path, module)
    named = isinstance(config.targets, tuple)
    # a module's one matrix may also be named as a parameter
    of_parameters = [name.removesuffix(".weight") for name in config.parameters if name.endswith(".weight")]
    if named and not _ends_with_one_of(module, (*(config.targets or ()), *of_parameters)):
        raise AdapterError(
            f"{path.name} holds tensors for {module!r}, which target_modules in {CONFIG} does not name.", DAMAGED
        )
    if _ends_with_one_of(module, config.excluded):
        raise AdapterError(
            f"{path.name} holds tensors for {module!r}, which exclude_modules in {CONFIG} leaves out.", DAMAGED
        )


def _check_tied(config: Config, modules: Iterable[str]) -> None:
    ends = {module.rpartition(".")[2] for module in modules} & {"embed_tokens", "lm_head"}
    if config.tied and len(ends) == 1:
        raise AdapterError(
            f"{config.path.name} asks for ensure_weight_tying: what the adapter learned of {ends.pop()} acts on "
            "embedding and output, but its file holds it for one of them only.",
            MERGE,
        )


def _notes(config: Config, modules: list[str]) -> tuple[str, ...]:
    if not isinstance(config.targets, tuple):
        return ()
    unused = [t for t in config.targets if not any(_ends_with_one_of(module, (t,)) for module in modules)]
    if not unused:
        return ()
    return (f"Its configuration names {', '.join(unused)}, for which it holds no tensors.",)


def _ends_with_one_of(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _matching(patterns: dict[str, Any], module: str, path: Path) -> str:
    """The first key of a pattern that fits the module, as PEFT finds it: it is, or ends, the module's name."""
    for key in patterns:
        if key == module or module.endswith(f".{key}"):
            return key
        if re.fullmatch(r"[\w.-]*", key):
            continue
        if len(key) > 200 or len(re.findall(r"[*+{?]", key)) > 3 or re.search(r"\)[*+{?]", key):
            raise AdapterError(f"{path.name} has the pattern {key!r:.80}, which is too intricate to follow.", DAMAGED)
        try:
            if re.match(rf"(.*\.)?({key.removeprefix('^')})$" if not key.startswith("^") else key, module):
                return key
        except re.error as error:
            raise AdapterError(f"{path.name} has the pattern {key!r:.80}, which is none ({error}).", DAMAGED) from None
    return ""


def read_config(path: Path) -> Config:
    """Reads adapter_config.json. Raises AdapterError naming the key that is wrong or that Realm does not do."""
    config = _parse(path)
    _refuse_variants(path, config)
    rank = _whole(path, config, "r")
    alpha = _positive(path, config, "lora_alpha")
    ranks, alphas = _table(path, config, "rank_pattern"), _table(path, config, "alpha_pattern")
    base = config.get("base_model_name_or_path")
    return Config(
        path=path,
        rank=rank,
        alpha=alpha,
        rslora=_flag(path, config, "use_rslora"),
        rank_pattern={key: _whole(path, ranks, key) for key in ranks},
        alpha_pattern={key: _positive(path, alphas, key) for key in alphas},
        targets=_targets(path, config.get("target_modules")),
        parameters=_names(path, "target_parameters", config.get("target_parameters")),
        swaps_experts=_is_before_19(config.get("peft_version")),
        excluded=_names(path, "exclude_modules", config.get("exclude_modules")),
        layers=_layers(path, config.get("layers_to_transform")),
        base_model=base if isinstance(base, str) else "",
        tied=_flag(path, config, "ensure_weight_tying"),
    )


def _parse(path: Path) -> dict[str, Any]:
    def constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number that JSON knows")

    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{path.name} has {path.stat().st_size} bytes; no configuration is so long.", DAMAGED)
        config = json.loads(path.read_bytes().decode("utf-8"), parse_constant=constant)
    except OSError as error:
        raise AdapterError(f"{path} could not be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise AdapterError(f"{path.name} is not JSON: {reason:.160}.", DAMAGED) from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path.name} is no JSON object.", DAMAGED)
    return config


def _refuse_variants(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f"{path.name} describes an adapter of the type {kind!r:.60} (peft_type); Realm applies LORA only."
        )
    for key, meaning in _VARIANTS.items():
        if config.get(key) not in (None, False, [], {}, ""):
            value = config[key]
            names = f" ({', '.join(map(str, value)):.80})" if isinstance(value, list) else ""
            raise AdapterError(f"{path.name} asks for {key}{names}: {meaning}. Realm applies plain LoRA only.", MERGE)
    for key, value in config.items():
        if key.startswith("use_") and key != "use_rslora" and value not in (None, False):
            raise AdapterError(f"{path.name} asks for {key}, a kind of LoRA that Realm does not know.", MERGE)
    if config.get("bias", "none") not in ("none", None):
        raise AdapterError(
            f"{path.name} has bias {config['bias']!r:.40}: it changes the model's biases too. "
            "Realm applies plain LoRA only.",
            MERGE,
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise AdapterError(
            f"{path.name} has init_lora_weights {start!r:.40}: the adapter belongs to a model whose own weights were "
            "changed before training, not to the original.",
            "Save it converted to a plain LoRA (path_initial_model_for_weight_conversion).",
        )


def _wrong(path: Path, key: str, value: Any, wanted: str) -> AdapterError:
    return AdapterError(f"{path.name}: {key} is {value!r:.60}, but it has to be {wanted}.", DAMAGED)


def _whole(path: Path, config: dict[str, Any], key: str) -> int:
    if key not in config:
        raise AdapterError(f"{path.name} lacks {key}, the adapter's rank.", DAMAGED)
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise _wrong(path, key, value, f"a whole number from 1 to {MAX_RANK}")
    return value


def _positive(path: Path, config: dict[str, Any], key: str) -> float:
    if key not in config:
        raise AdapterError(f"{path.name} lacks {key}, so nobody can tell how strongly the adapter acts.", DAMAGED)
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        raise _wrong(path, key, value, f"a number above 0 and at most {MAX_ALPHA:g}")
    return float(value)


def _flag(path: Path, config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(path, key, value, "true or false")
    return bool(value)


def _table(path: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(path, key, value, "an object from modules to numbers")
    return value


def _targets(path: Path, value: Any) -> str | tuple[str, ...] | None:
    """Names, a pattern for whole names (which nothing is checked by), or None."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(path, "target_modules", value, "a list of names or a pattern")
    return tuple(value)


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """A list of names; nothing is checked by a pattern."""
    if value is None or (isinstance(value, str) and key == "exclude_modules"):
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(path, key, value, "a list of names" + (" or a pattern" if key == "exclude_modules" else ""))
    return tuple(value)


def _is_before_19(version: Any) -> bool:
    """Whether PEFT is older than 0.19; it says its version since 0.18."""
    numbers = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return numbers is None or (int(numbers[1]), int(numbers[2])) < (0, 19)


def _layers(path: Path, value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    numbers = [value] if isinstance(value, int) else value
    if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise _wrong(path, "layers_to_transform", value, "a layer's number or a list of them")
    return frozenset(numbers)
