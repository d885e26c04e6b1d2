"""adapter_config.json, as the PEFT library writes it: what its keys mean stands in peft/tuners/lora/config.py.

Everything in it that changes what an adapter computes is either done (by peft.py) or refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.adapters.adapter import DAMAGED, MAX_ALPHA, MAX_RANK, MERGE
from engine.errors import AdapterError

CONFIG = "adapter_config.json"

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
