"""Whether one model can draft for another: their tokens have to mean the same.

A draft only ever exchanges token ids with the model it drafts for, so how text becomes tokens (merges, scores,
pre-tokenizer) does not matter here; what each id stands for does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.architectures import read_trained_context_length
from engine.errors import UnsupportedModelError
from engine.gguf import GGUFFile
from engine.tokenizer.vocabulary import Attr, Vocabulary, read_vocabulary

_PADDING = re.compile(
    r"\[PAD-?\d*\]|\[EMPTY_\d+\]|<\|?(unused|reserved|dummy|extra_id|pad|placeholder)[^>]*>", re.IGNORECASE
)
"""Texts of tokens that only fill a vocabulary up."""

_NAMES = {"bos": "begins a text with", "eos": "ends a text with", "eot": "ends a turn with"}


@dataclass(frozen=True)
class DraftFit:
    """fits: the draft can guess for the target. reason: a sentence: why not, or how they differ harmlessly; may be
    empty."""

    fits: bool
    reason: str = ""


@dataclass(frozen=True)
class SharedTokens:
    """Which ids mean the same in target and draft.

    shared: bool [target's tokens], those that may be guessed. stand_in: int32 [target's tokens], what the draft reads
    in place of each: the id itself where it is shared.
    """

    shared: NDArray[np.bool_]
    stand_in: NDArray[np.int32]


def check_draft(target: Path | str, draft: Path | str) -> DraftFit:
    """Compares two model files by their metadata alone.

    Raises a RealmError where one of them cannot be read or has no usable vocabulary.
    """
    with GGUFFile.open(target) as file:
        vocabulary = read_vocabulary(file)
    return check_draft_file(vocabulary, draft)


def check_draft_file(target: Vocabulary, draft: Path | str) -> DraftFit:
    """Like `check_draft`, for a target whose vocabulary is known already."""
    with GGUFFile.open(draft) as file:
        try:
            read_trained_context_length(file)
        except UnsupportedModelError as error:
            return DraftFit(False, error.message)
        if not file.tensors:
            return DraftFit(False, f"{file.path.name} holds a vocabulary and no weights.")
        vocabulary = read_vocabulary(file)
    return compare_vocabularies(target, vocabulary)


def compare_vocabularies(target: Vocabulary, draft: Vocabulary) -> DraftFit:
    """Compares what the ids of two vocabularies stand for, and names the first that differs.

    They may differ in padding, and in tokens that were added behind the ordinary ones.
    """
    if target.model != draft.model:
        return DraftFit(
            False, f"The draft's vocabulary is of the kind {draft.model!r}, the model's of the kind {target.model!r}."
        )
    different = _different(target, draft)
    wrong = different[~_harmless(target, draft, different)]
    if len(wrong):
        token = int(wrong[0])
        return DraftFit(
            False,
            f"Token {token} is {target.tokens[token]!r} in the model, but {draft.tokens[token]!r} in the draft"
            + (f" ({len(wrong)} tokens differ)." if len(wrong) > 1 else "."),
        )
    return DraftFit(True, " ".join(_notes(target, draft, len(different))))


def shared_tokens(target: Vocabulary, draft: Vocabulary) -> SharedTokens:
    """What two vocabularies that fit have in common."""
    n = len(target.tokens)
    shared = np.zeros(n, np.bool_)
    shared[: min(n, len(draft.tokens))] = True
    shared[_different(target, draft)] = False
    unknown = draft.special.get("unk", draft.special.get("eos", 0))
    stand_in = np.arange(n, dtype=np.int32)
    for token in np.flatnonzero(~shared).tolist():
        stand_in[token] = draft.ids.get(target.tokens[token], unknown)
    return SharedTokens(shared, stand_in)


def _different(target: Vocabulary, draft: Vocabulary) -> NDArray[np.int64]:
    """Ids that both have, with different texts."""
    pairs = zip(target.tokens, draft.tokens, strict=False)
    return np.array([i for i, (a, b) in enumerate(pairs) if a != b], np.int64)


def _harmless(target: Vocabulary, draft: Vocabulary, different: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Differences that are padding on one side, or lie behind the last ordinary token that both have in common."""
    n = min(len(target.tokens), len(draft.tokens))
    ordinary = ((target.attrs[:n] & _ORDINARY) != 0) & ((draft.attrs[:n] & _ORDINARY) != 0)
    ordinary[different] &= ~(_is_padding(target, different) | _is_padding(draft, different))
    last = int(np.flatnonzero(ordinary)[-1]) if ordinary.any() else -1
    return (different > last) | _is_padding(target, different) | _is_padding(draft, different)


_ORDINARY = np.uint8(Attr.NORMAL | Attr.BYTE)


def _is_padding(vocabulary: Vocabulary, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    unused = [bool(vocabulary.attrs[t] & Attr.UNUSED) or bool(_PADDING.fullmatch(vocabulary.tokens[t])) for t in tokens]
    return np.array(unused, np.bool_)


def _notes(target: Vocabulary, draft: Vocabulary, n_different: int) -> list[str]:
    notes = []
    only = len(target.tokens) - len(draft.tokens)
    if n_different or only:
        counted = n_different + abs(only)
        notes.append(
            f"{counted} token{' that is' if counted == 1 else 's that are'} padding or added in only one of the two "
            f"{'is' if counted == 1 else 'are'} never guessed."
        )
    for name, does in _NAMES.items():
        ours, theirs = target.special.get(name), draft.special.get(name)
        if ours != theirs and ours is not None and theirs is not None:
            notes.append(
                f"The model {does} token {ours} ({target.tokens[ours]!r}), the draft with token {theirs} "
                f"({draft.tokens[theirs]!r}); there the draft may guess wrong."
            )
    return notes
