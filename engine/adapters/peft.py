"""Adapters as the PEFT library saves them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engine.adapters.adapter import DAMAGED, MERGE, Adapter, Array, LowRank, low_rank, stacked
from engine.adapters.describe import describe
from engine.adapters.modules import expert_of, layer_of, tensor_name
from engine.adapters.parameters import parameters_of, stacks, wrapped_experts
from engine.adapters.peft_config import CONFIG, Config, read_config
from engine.adapters.safetensors import SafetensorsFile
from engine.errors import AdapterError

WEIGHTS = "adapter_model.safetensors"

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?:lora_(?P<linear>[AB])(?:\.(?!weight$)[^.]+)?\.weight|lora_embedding_(?P<embedding>[AB])(?:\.[^.]+)?)"
)

_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.base_layer\.weight")
"""The model's own weights below an adapter; PEFT saves them where it acts on the embedding or the output."""


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
