"""DRY: tokens that would prolong a repetition are held back, the more the longer it is already.

The definition is llama.cpp's (src/llama-sampling.cpp), after the sampler's inventor p-e-w and pi6am.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from engine.sampling.candidates import LARGEST, Candidates

LONGEST_BREAKER = 40  # characters of a breaker that count
LONGEST_TAIL = 20  # tokens of a breaker that count, after its first
_FLOAT_MAX_LOG = 88.7228391

Breakers = Mapping[int, list[list[int]]]
"""By the token in which a breaker begins: the tokens that complete it, none where the token holds it whole."""


class Spelling(Protocol):
    """What DRY needs to know of a vocabulary; `engine.tokenizer.Tokenizer` has it."""

    @property
    def n_vocab(self) -> int: ...
    def token_bytes(self, token: int) -> bytes: ...
    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


_known: WeakKeyDictionary[Spelling, dict[tuple[str, ...], Breakers]] = WeakKeyDictionary()


def find_breakers(texts: Sequence[str], spelling: Spelling) -> Breakers:
    """The breakers as tokens: every token that holds one, and every token that begins one with what completes it."""
    cut = tuple(text[:LONGEST_BREAKER] for text in texts if text)
    known = _known.setdefault(spelling, {})
    if cut not in known:
        known[cut] = _find(cut, spelling)
    return known[cut]


def _find(texts: Sequence[str], spelling: Spelling) -> Breakers:
    found: dict[int, list[list[int]]] = {}
    pieces = [spelling.token_bytes(token) for token in range(spelling.n_vocab)]
    for text in texts:
        wanted = text.encode("utf-8", "surrogateescape")
        tails: dict[int, list[int]] = {}
        for token, piece in enumerate(pieces):
            if wanted in piece:
                found.setdefault(token, []).append([])
                continue
            for length in range(min(len(wanted) - 1, len(piece)), 0, -1):
                if not piece.endswith(wanted[:length]):
                    continue
                if length not in tails:
                    rest = wanted[length:].decode("utf-8", "surrogateescape")
                    tails[length] = spelling.encode(rest, add_special=False)[:LONGEST_TAIL]
                if tails[length] not in found.setdefault(token, []):
                    found[token].append(tails[length])
    return found


def dry(
    candidates: Candidates, window: Sequence[int], multiplier: float, base: float, allowed: int, breakers: Breakers
) -> Candidates:
    """Lowers the logit of each token by multiplier * base ** (length - allowed), where `length` is that of the longest
    end of the window that occurs earlier in it with this token behind; shorter ones than `allowed` do not count."""
    limit = _back_to_breaker(window, breakers)
    if len(window) <= allowed or limit < allowed:
        return candidates
    longest: dict[int, int] = {} if allowed else dict.fromkeys(window[1:], 0)
    for end, length in _repetitions(window, limit):
        token = window[end]
        if length >= allowed and length > longest.get(token, -1):
            longest[token] = length
    longest = {token: length for token, length in longest.items() if [] not in breakers.get(token, ())}
    if not longest:
        return candidates
    most = int(_FLOAT_MAX_LOG / math.log(base)) if base > 1.000001 else 0
    logits = candidates.logits.copy()
    tokens = np.fromiter(longest, np.int64)
    exponents = [min(length - allowed, most) if most else length - allowed for length in longest.values()]
    lowered = np.array([_penalty(multiplier, base, exponent) for exponent in exponents], np.float32)
    if candidates.ids is None:
        logits[tokens] -= lowered
    else:
        order = np.argsort(tokens)
        places = np.flatnonzero(np.isin(candidates.ids, tokens))
        logits[places] -= lowered[order][np.searchsorted(tokens[order], candidates.ids[places])]
    return Candidates(candidates.ids, logits, False)


def _penalty(multiplier: float, base: float, exponent: int) -> float:
    try:
        return min(multiplier * base**exponent, LARGEST)
    except OverflowError:
        return LARGEST


def _back_to_breaker(window: Sequence[int], breakers: Breakers) -> int:
    """How many tokens stand behind the last breaker."""
    if not breakers:
        return len(window)
    for back in range(len(window)):
        tails = breakers.get(window[-1 - back])
        if tails is None:
            continue
        behind = list(window[len(window) - back :])
        whole = [len(tail) for tail in tails if behind[: len(tail)] == tail]
        if whole:
            return back - max(whole)
    return len(window)


def _repetitions(window: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """(place, length): the `length` tokens before the place are the last tokens of the window too; 0 is left out."""
    n = len(window)
    tokens = np.asarray(window, np.int64)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])
    out = []
    lengths = np.ones(len(ends), np.int64)
    going = np.arange(len(ends))
    for back in range(1, min(limit, n)):
        at = ends[going] - back
        going = going[at >= 0]
        going = going[tokens[ends[going] - back] == tokens[n - 1 - back]]
        if not len(going):
            break
        lengths[going] += 1
    for end, length in zip(ends.tolist(), np.minimum(lengths, limit).tolist(), strict=True):
        out.append((end + 1, length))
    return out
