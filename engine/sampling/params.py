"""Checks of the settings a request brings."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from engine.api import DEFAULT_SAMPLERS, SamplingParams
from engine.errors import RequestError


def check_params(params: SamplingParams, n_vocab: int) -> None:
    """Raises RequestError, naming the setting, its value and what it may be."""
    _number("temperature", params.temperature, "a number from 0 up", low=0.0)
    _number("top_p", params.top_p, "a number from 0 to 1", low=0.0, high=1.0)
    _number("min_p", params.min_p, "a number from 0 to 1", low=0.0, high=1.0)
    _number("typical_p", params.typical_p, "a number from 0 to 1", low=0.0, high=1.0)
    if _number("repeat_penalty", params.repeat_penalty, "a number above 0 (1 is off)") <= 0:
        raise _refusal("repeat_penalty", params.repeat_penalty, "a number above 0 (1 is off)")
    _number("presence_penalty", params.presence_penalty, "a finite number (0 is off)")
    _number("frequency_penalty", params.frequency_penalty, "a finite number (0 is off)")
    _number("xtc_probability", params.xtc_probability, "a number from 0 (off) to 1", low=0.0, high=1.0)
    _number("xtc_threshold", params.xtc_threshold, "a number from 0 to 1 (above 0.5 is off)", low=0.0, high=1.0)
    _number("dry_multiplier", params.dry_multiplier, "a number from 0 (off) up", low=0.0)
    _number("dry_base", params.dry_base, "a finite number (below 1 is off)")
    _integer("dry_allowed_length", params.dry_allowed_length, "a whole number from 0 up", low=0)
    _integer(
        "dry_penalty_last_n", params.dry_penalty_last_n, "a whole number from -1 (everything) up; 0 is off", low=-1
    )
    _check_breakers(params.dry_sequence_breakers)
    _number("dynatemp_range", params.dynatemp_range, "a number from 0 (off) up", low=0.0)
    _number("dynatemp_exponent", params.dynatemp_exponent, "a number from 0 up", low=0.0)
    _number("top_n_sigma", params.top_n_sigma, "a finite number (0 or less is off)")
    _integer("mirostat", params.mirostat, "0 (off), 1 or 2", low=0, high=2)
    _number("mirostat_tau", params.mirostat_tau, "a number from 0 up", low=0.0)
    _number("mirostat_eta", params.mirostat_eta, "a number from 0 up", low=0.0)
    _integer("top_k", params.top_k, "a whole number (0 is off)")
    _integer("repeat_last_n", params.repeat_last_n, "a whole number from -1 (everything) up; 0 is off", low=-1)
    if params.seed is not None:
        _integer("seed", params.seed, "a whole number from 0 up, or none", low=0)
    _check_order(params.samplers)
    for token, bias in params.logit_bias.items():
        if not is_integer(token) or not 0 <= token < n_vocab:
            raise RequestError(
                f"logit_bias names the token {token!r}, but this model's tokens are 0 to {n_vocab - 1}.",
                "Remove that entry.",
            )
        if bias != -math.inf:
            _number(f"logit_bias of token {token}", bias, "a number, or minus infinity to ban the token")


def _check_order(samplers: Any) -> None:
    if isinstance(samplers, str):
        raise _refusal("samplers", samplers, "a list of names")
    known = ", ".join(DEFAULT_SAMPLERS)
    for name in samplers:
        if name not in DEFAULT_SAMPLERS:
            raise RequestError(f"samplers names {name!r}, which is no sampler.", f"Known are {known}.")
    if len(set(samplers)) != len(samplers):
        raise RequestError(f"samplers lists a sampler twice: {', '.join(samplers)}.", "Name each at most once.")


def _check_breakers(breakers: Any) -> None:
    if isinstance(breakers, str) or not all(isinstance(text, str) and text and _is_text(text) for text in breakers):
        raise _refusal("dry_sequence_breakers", breakers, "a list of texts that are not empty")


def _is_text(text: str) -> bool:
    """Whether UTF-8 can spell it: half a surrogate pair cannot be, unless it stands for a byte of a command line."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _number(name: str, value: Any, wanted: str, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        number = float(value) if _is_number(value) else math.nan
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        raise _refusal(name, value, wanted)
    return number


def _integer(name: str, value: Any, wanted: str, low: float = -math.inf, high: float = math.inf) -> None:
    if not is_integer(value) or not low <= value <= high:
        raise _refusal(name, value, wanted)


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _refusal(name: str, value: Any, wanted: str) -> RequestError:
    return RequestError(f"{name} is {value!r:.80}, but it has to be {wanted}.", f"Change {name}.")
