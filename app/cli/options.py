"""The options that describe a request, the same on the command line and in a line of JSON."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from app.cli.input import checked_messages, form_text, token_ids, whole_text
from app.cli.stream_options import context_policy, session_path
from engine.api import KV_TYPES, AdapterUse, GenerateRequest, SamplingParams
from engine.errors import RequestError
from engine.strength import MAX_STRENGTH, check_strength

NEUTRAL = SamplingParams()

# name: (flags after --name, type, metavar, help). Flags are llama.cpp's.
_NUMBERS: dict[str, tuple[tuple[str, ...], type, str, str]] = {
    "temperature": (("--temp",), float, "T", "0 takes the likeliest token each time (greedy)"),
    "top_k": ((), int, "K", "keep the K likeliest tokens; 0 keeps all"),
    "top_p": ((), float, "P", "keep the likeliest tokens that make up the probability P; 1 keeps all"),
    "min_p": ((), float, "P", "keep tokens at least P times as likely as the likeliest; 0 keeps all"),
    "typical_p": (("--typical",), float, "P", "locally typical sampling; 1 turns it off"),
    "repeat_penalty": ((), float, "X", "divide the logits of recent tokens by X; 1 turns it off"),
    "repeat_last_n": ((), int, "N", "how many recent tokens the penalties look at; 0 none, -1 the whole context"),
    "presence_penalty": ((), float, "X", "subtract X from the logits of recent tokens"),
    "frequency_penalty": ((), float, "X", "subtract X from a token's logit for each recent use"),
    "xtc_probability": ((), float, "P", "how often XTC drops the likeliest tokens; 0 turns it off"),
    "xtc_threshold": ((), float, "P", "what XTC calls likely; above 0.5 turns it off"),
    "dry_multiplier": ((), float, "X", "how strongly DRY holds back repetitions; 0 turns it off"),
    "dry_base": ((), float, "X", "how fast that grows with the length of the repetition"),
    "dry_allowed_length": ((), int, "N", "repetitions that are shorter are not held back"),
    "dry_penalty_last_n": ((), int, "N", "how many recent tokens DRY looks at; 0 none, -1 the whole context"),
    "dynatemp_range": ((), float, "X", "let the temperature move by this much with the entropy; 0 turns it off"),
    "dynatemp_exponent": (("--dynatemp-exp",), float, "X", "how that range is bent"),
    "top_n_sigma": (("--top-nsigma",), float, "X", "keep logits X standard deviations below the largest; -1 keeps all"),
    "mirostat": ((), int, "N", "1 or 2 keeps the surprise of the text constant; 0 turns it off"),
    "mirostat_tau": (("--mirostat-ent",), float, "X", "that surprise, in bits"),
    "mirostat_eta": (("--mirostat-lr",), float, "X", "how fast mirostat learns"),
    "seed": (("-s",), int, "S", "the same seed gives the same answer; -1 draws one"),
}
_OTHER_NAMES = {"typ_p": "typical_p", "typical": "typical_p", "temp": "temperature", "top-n-sigma": "top_n_sigma"}
_REQUEST_OPTIONS = (
    "prompt",
    "prompt_tokens",
    "messages",
    "max_tokens",
    "stop",
    "ignore_eos",
    "plain_template",
    "answer_so_far",
    "grammar",
    "json_schema",
    "logprobs",
    "context_policy",
    "priority",
    "session",
    "lora",
)
REQUEST_NAMES = frozenset((*_REQUEST_OPTIONS, *(field.name for field in fields(SamplingParams))))


def add_model_argument(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    parser.add_argument(
        "--model", "-m", required=required, metavar="MODEL", help="path of a GGUF file, or the name starter"
    )


def add_device_arguments(parser: argparse.ArgumentParser, *, context: bool = True, device: str | None = "auto") -> None:
    """Adds --device, with `device` as its default (None: the one set in the window), --context-length, --kv-type."""
    default = "as set in the window" if device is None else device
    parser.add_argument(
        "--device",
        default=device,
        metavar="D",
        help=f"opencl, numpy, auto or an id from `realm devices` (default {default}); opencl:0=12,numpy puts the first "
        "12 layers on one device and the rest on another",
    )
    if context:
        parser.add_argument(
            "--context-length",
            "-c",
            "--ctx-size",
            type=int,
            metavar="N",
            help="tokens of context to make room for (default: the model's own, at most 8192, and what memory allows)",
        )
    parser.add_argument(
        "--kv-type",
        choices=KV_TYPES,
        default=KV_TYPES[0],
        help="what keys and values are kept as: q8_0 takes about half the memory of f16 and q4_0 a quarter, and long "
        "contexts are read as much faster (default f16)",
    )
    parser.add_argument(
        "--memory-limit",
        type=size_in_bytes,
        metavar="SIZE",
        help="what the model may take at most, 500M or 2G (default: what is free)",
    )


def at_least(minimum: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `minimum` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return value

    number.__name__ = "whole number"
    return number


def size_in_bytes(text: str) -> int:
    """ "500M" or "2G" (powers of 1000), or a number of bytes; a type for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)[bB]?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500M or 2G")
    size = int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} leaves no memory at all")
    return size


def add_lora_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--lora",
        action="append",
        metavar="PATH[:STRENGTH]",
        default=argparse.SUPPRESS,
        help="let a LoRA adapter act: a GGUF file, a PEFT folder or its safetensors file; strength 1 is as it was "
        f"trained, from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g} (repeatable: they act together)",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="answer in JSON")


def add_sampling_arguments(parser: argparse.ArgumentParser, *, ignore_eos: bool = True) -> None:
    """Adds every setting of an answer. What is not given stays absent from the namespace."""
    group = parser.add_argument_group("settings of the answer")
    group.add_argument(
        "--max-tokens",
        "-n",
        "--n-predict",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="the longest answer, in tokens (default: until the model stops or the context is full)",
    )
    for name, (more, kind, metavar, help_line) in _NUMBERS.items():
        default = getattr(NEUTRAL, name)
        text = help_line if default is None else f"{help_line} (default {default:g})"
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, *more, dest=name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)
    group.add_argument(
        "--logit-bias",
        "-l",
        action="append",
        metavar="ID+X",
        default=argparse.SUPPRESS,
        help="add X to the logit of a token, 15043+1 or 15043-1 (repeatable)",
    )
    group.add_argument(
        "--dry-sequence-breaker",
        dest="dry_sequence_breakers",
        action="append",
        metavar="TEXT",
        default=argparse.SUPPRESS,
        help="DRY does not look for repetitions across this text (repeatable; default: line end, colon, quote and "
        "asterisk, which the first one given replaces; none: no text)",
    )
    group.add_argument(
        "--samplers",
        metavar="A;B;...",
        default=argparse.SUPPRESS,
        help=f"the order of the chain (default {';'.join(NEUTRAL.samplers)}); one left out does not run",
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--grammar",
        "--grammar-file",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a GBNF grammar that the answer has to match",
    )
    form.add_argument(
        "--json-schema",
        "--json-schema-file",
        "-jf",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a JSON schema: the answer is JSON that it describes",
    )
    form.add_argument(
        "-j",
        dest="json_schema",
        metavar="JSON",
        default=argparse.SUPPRESS,
        help="the same, given here; {} stands for any object",
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        default=argparse.SUPPRESS,
        help="end the answer before this text (repeatable)",
    )
    add_lora_argument(group)
    if ignore_eos:
        group.add_argument(
            "--ignore-eos", action="store_true", default=argparse.SUPPRESS, help="go on when the model would stop"
        )
        group.add_argument(
            "--plain-template",
            action="store_true",
            default=argparse.SUPPRESS,
            help="a plain chat template in place of the model's own, which may fail",
        )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The request options that the command line gave, by name."""
    given = {name: value for name, value in vars(args).items() if name in REQUEST_NAMES and value is not None}
    for name in ("grammar", "json_schema"):
        if isinstance(given.get(name), Path):
            given[name] = form_text(given[name])
    return given


def sampling_params(options: Mapping[str, Any], base: SamplingParams = NEUTRAL) -> SamplingParams:
    """`base` with the settings that `options` names. Raises RequestError for values of the wrong kind."""
    values: dict[str, Any] = {}
    for name, (_, kind, _, _) in _NUMBERS.items():
        if name in options:
            values[name] = _number(name, options[name], kind)
    if values.get("seed") == -1:
        values["seed"] = None
    if "logit_bias" in options:
        values["logit_bias"] = _logit_bias(options["logit_bias"])
    if "dry_sequence_breakers" in options:
        values["dry_sequence_breakers"] = _breakers(options["dry_sequence_breakers"])
    if "samplers" in options:
        values["samplers"] = _samplers(options["samplers"])
    return replace(base, **values)


def generate_request(options: Mapping[str, Any]) -> GenerateRequest:
    """The request that `options` describe. Raises RequestError for unknown names and values of the wrong kind."""
    unknown = sorted(set(options) - REQUEST_NAMES)
    if unknown:
        raise RequestError(f"There is no option {unknown[0]!r}.", f"Options are {', '.join(sorted(REQUEST_NAMES))}.")
    given = [name for name in ("prompt", "prompt_tokens", "messages") if options.get(name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"A request needs exactly one of prompt, prompt_tokens and messages; this one has "
            f"{' and '.join(given) if given else 'none'}."
        )
    prompt = options.get("prompt")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise RequestError("The prompt has to be a text.")
        whole_text(prompt)
    so_far = options.get("answer_so_far", "")
    if not isinstance(so_far, str):
        raise RequestError("answer_so_far has to be a text.")
    ids = options.get("prompt_tokens")
    messages = options.get("messages")
    max_tokens = options.get("max_tokens")
    return GenerateRequest(
        prompt=prompt,
        prompt_tokens=None if ids is None else token_ids(ids, "prompt_tokens"),
        messages=None if messages is None else checked_messages(messages),
        sampling=sampling_params(options),
        max_tokens=None if max_tokens is None else _number("max_tokens", max_tokens, int),
        stop=stop_strings(options),
        ignore_eos=_flag("ignore_eos", options.get("ignore_eos", False)),
        plain_template=_flag("plain_template", options.get("plain_template", False)),
        adapters=adapter_uses(options),
        answer_so_far=whole_text(so_far),
        grammar=grammar_text(options),
        json_schema=schema_of(options),
        logprobs=_number("logprobs", options.get("logprobs", 0), int),
        context_policy=context_policy(options),
        priority=_number("priority", options.get("priority", 0), int),
        session=session_path(options),
    )


def grammar_text(options: Mapping[str, Any]) -> str | None:
    grammar = options.get("grammar")
    if grammar is not None and not isinstance(grammar, str):
        raise RequestError("grammar has to be a text in GBNF.")
    return grammar


def schema_of(options: Mapping[str, Any]) -> Mapping[str, Any] | str | None:
    """The JSON schema, as an object or as its text."""
    schema = options.get("json_schema")
    if schema is not None and not isinstance(schema, Mapping | str):
        raise RequestError("json_schema has to be a JSON schema, an object.")
    return schema


def adapter_uses(options: Mapping[str, Any]) -> tuple[AdapterUse, ...]:
    """The adapters of a request: PATH[:STRENGTH], or in JSON also {"path": ..., "strength": ...}, one or a list."""
    given = options.get("lora", ())
    items = given if isinstance(given, list | tuple) else [given]
    uses = tuple(_adapter_use(item) for item in items)
    for use in uses:
        check_strength(use.path.name, use.strength)
    return uses


def _adapter_use(item: Any) -> AdapterUse:
    if isinstance(item, Mapping) and isinstance(item.get("path"), str) and set(item) <= {"path", "strength"}:
        return AdapterUse(Path(item["path"]), _number("The strength of an adapter", item.get("strength", 1.0), float))
    if not isinstance(item, str) or not item:
        raise RequestError('lora takes "PATH", "PATH:STRENGTH", or objects {"path": "PATH", "strength": 0.5}.')
    path, colon, strength = item.rpartition(":")
    if not colon or not path:
        return AdapterUse(Path(item))
    whole = _exists(item)
    if whole and not _exists(path):  # the colon is one of the name's
        return AdapterUse(Path(item))
    try:
        return AdapterUse(Path(path), float(strength))
    except ValueError:
        if whole or "/" in strength or "\\" in strength:  # the colon was that of a drive, or a name's
            return AdapterUse(Path(item))
        raise RequestError(
            f"{strength!r:.40} after {path} is no strength.", "Write PATH:0.5, or PATH alone for 1."
        ) from None


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that is too long for a file
        return False


def stop_strings(options: Mapping[str, Any]) -> tuple[str, ...]:
    stop = options.get("stop", ())
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
        raise RequestError("stop has to be a text or an array of texts.")
    return tuple(strings)


def _number(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        wanted = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} has to be {wanted}, not {value!r}.")
    try:
        return kind(value)
    except OverflowError:
        raise RequestError(f"{name} is too large.") from None


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} has to be true or false, not {value!r}.")
    return value


def _logit_bias(value: Any) -> dict[int, float]:
    """{"15043": 1.5} as JSON has it, or ["15043+1.5"] as the command line does."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [_split_bias(item) for item in value]
    else:
        raise RequestError('logit_bias has to be an object such as {"15043": 1.5}.')
    try:
        return {int(token): float(bias) for token, bias in pairs}
    except (TypeError, ValueError):
        raise RequestError("logit_bias takes token ids and numbers, 15043+1.5 or 15043-inf.") from None


def _split_bias(item: Any) -> tuple[str, str]:
    match = re.fullmatch(r"\s*(\d+)\s*([+-].+)", str(item))
    return (match[1], match[2]) if match else (str(item), "")


def _breakers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise RequestError("dry_sequence_breakers has to be an array of texts.")
    return tuple(text for text in value if text not in ("", "none"))


def _samplers(value: Any) -> tuple[str, ...]:
    names = value.split(";") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"samplers has to be a list of names such as {';'.join(NEUTRAL.samplers)}.")
    stripped = (name.strip() for name in names if name.strip())
    return tuple(_OTHER_NAMES.get(name, name) for name in stripped)
