"""What a GGUF file says about its vocabulary, read and checked.

The rules (defaults per model, special tokens known by their text, attributes that the format does not carry) are those
of llama.cpp's llama-vocab.cpp, so that the same file means the same tokens here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import TokenizerError, UnsupportedModelError
from engine.tokenizer.pretokenizer import PRETOKENIZERS, Pretokenizer

PREFIX = "tokenizer.ggml."
SUPPORTED_MODELS = ("gpt2", "gemma4", "llama", "bert", "t5")
_DAMAGED = "The file is damaged; download it again."


class HasMetadata(Protocol):
    """What the tokenizer reads of a GGUF file: string arrays are list[str], numeric arrays numpy arrays."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class Attr(IntFlag):
    """What a token is. The first seven mirror `tokenizer.ggml.token_type`; the strips are known by model name only."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 4
    USER_DEFINED = 8
    UNUSED = 16
    BYTE = 32
    LSTRIP = 64  # white space left of the token belongs to it
    RSTRIP = 128  # white space right of the token belongs to it


_ATTR_OF_TYPE = np.array(
    [Attr.UNDEFINED, Attr.NORMAL, Attr.UNKNOWN, Attr.CONTROL, Attr.USER_DEFINED, Attr.UNUSED, Attr.BYTE], dtype=np.uint8
)

_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
_END_OF_GENERATION = (
    *_END_OF_TURN,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
# Fill-in-the-middle tokens are control tokens even where a converter forgot to say so.
_FIM = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss reads its own channel marks

_ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),  # spelt so in the format
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary. `attrs` is uint8 [n] of Attr bits, `scores` float32 [n] or None."""

    model: str
    pre: str
    pretokenizer: Pretokenizer | None  # of BPE models
    tokens: Sequence[str]  # UTF-8, bytes that are none as surrogate escapes
    ids: Mapping[str, int]  # the first id of each text
    attrs: NDArray[np.uint8]
    protected: NDArray[np.bool_]  # tokens that text of a person must never become: control and unknown
    scores: NDArray[np.float32] | None
    merges: Sequence[str]
    special: Mapping[str, int]  # "bos", "eos", "eot", "unk", "sep", ... where the model has them
    end_tokens: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    remove_extra_whitespaces: bool
    lowercase: bool
    strip_accents: bool
    precompiled_charsmap: bytes
    warnings: tuple[str, ...]

    def plain_ids(self) -> dict[str, int]:
        """The id of each token that plain text may become: SentencePiece never merges text into a control token."""
        ids = dict(self.ids)
        for token in np.flatnonzero(self.protected).tolist():
            ids.pop(self.tokens[token], None)
        return ids

    def special_tokens(self, *, control: bool) -> list[int]:
        """Ids of the tokens that are found in text before anything else; with `control`, the hidden ones too."""
        wanted = Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN
        hidden = Attr.CONTROL | Attr.UNKNOWN
        mask = (self.attrs & wanted) != 0
        if not control:
            mask &= (self.attrs & hidden) == 0
        return [int(i) for i in np.flatnonzero(mask)]


def read_vocabulary(file: HasMetadata) -> Vocabulary:
    """Reads and checks the tokenizer keys. Raises TokenizerError or UnsupportedModelError, naming the key."""
    keys = _Keys(file.metadata)
    model = keys.string("model")
    if model is None:
        raise TokenizerError(f"The file has no tokenizer: {PREFIX}model is missing.", _DAMAGED)
    if model not in SUPPORTED_MODELS:
        raise UnsupportedModelError(
            f"The tokenizer of this model ({PREFIX}model = {model!r}) is not supported.",
            f"Supported are {', '.join(SUPPORTED_MODELS)}.",
        )
    warnings: list[str] = []
    tokens, ids = _tokens(keys, warnings)
    n = len(tokens)
    scores = _scores(keys, n)
    attrs = _attrs(keys, n)
    merges = keys.strings("merges")
    bpe = model in ("gpt2", "gemma4")
    if bpe and merges is None:
        raise TokenizerError(f"The vocabulary cannot be used: {PREFIX}merges is missing.", _DAMAGED)
    if model in ("llama", "t5") and scores is None:
        # Without scores every merge would be as good as any other.
        raise TokenizerError(f"The vocabulary cannot be used: {PREFIX}scores is missing.", _DAMAGED)
    pre, pretokenizer = _pretokenizer(model, keys.string("pre"), warnings)

    special = _special_ids(keys, model, pre, n, warnings)
    hidden = np.uint8(Attr.CONTROL | Attr.UNKNOWN)
    declared_hidden = (attrs & hidden) != 0
    end_tokens = _known_by_text(tokens, ids, attrs, special)
    _strips(file.metadata, pre, ids, attrs)

    add_bos, add_eos = _adds(keys, model, pretokenizer, special, warnings)
    lowercase = keys.boolean("normalizer.lowercase", True)
    return Vocabulary(
        model=model,
        pre=pre,
        pretokenizer=pretokenizer,
        tokens=tokens,
        ids=ids,
        attrs=attrs,
        protected=declared_hidden | ((attrs & hidden) != 0),
        scores=scores,
        merges=merges or (),
        special=special,
        end_tokens=end_tokens,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=keys.boolean("add_space_prefix", model == "llama"),
        remove_extra_whitespaces=keys.boolean("remove_extra_whitespaces", False),
        lowercase=lowercase,
        strip_accents=keys.boolean("normalizer.strip_accents", lowercase),
        precompiled_charsmap=keys.blob("precompiled_charsmap"),
        warnings=tuple(warnings),
    )


class _Keys:
    """Typed access to the tokenizer keys; a value of the wrong type is an error that names its key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def _wrong(self, key: str, wanted: str, value: object) -> TokenizerError:
        found = "an array" if isinstance(value, list | np.ndarray) else type(value).__name__
        return TokenizerError(f"{PREFIX}{key} must be {wanted}, but is {found}.", _DAMAGED)

    def string(self, key: str) -> str | None:
        value = self._metadata.get(PREFIX + key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._metadata.get(PREFIX + key)
        if value is None:
            return default
        if not isinstance(value, bool | np.bool_):
            raise self._wrong(key, "a boolean", value)
        return bool(value)

    def integer(self, key: str) -> int | None:
        value = self._metadata.get(PREFIX + key)
        if value is None:
            return None
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise self._wrong(key, "an integer", value)
        return int(value)

    def strings(self, key: str) -> list[str] | None:
        value = self._metadata.get(PREFIX + key)
        if value is None:
            return None
        if isinstance(value, np.ndarray) and value.size == 0:
            return []
        if not isinstance(value, list | tuple) or (value and not isinstance(value[0], str)):
            raise self._wrong(key, "an array of strings", value)
        return list(value)

    def array(self, key: str, kinds: str, what: str) -> NDArray[Any] | None:
        value = self._metadata.get(PREFIX + key)
        if value is None:
            return None
        if isinstance(value, list | tuple) and (not value or isinstance(value[0], int | float)):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or (value.size and value.dtype.kind not in kinds):
            raise self._wrong(key, what, value)
        return value

    def blob(self, key: str) -> bytes:
        value = self.array(key, "iu", "an array of bytes")
        return b"" if value is None else value.astype(np.uint8).tobytes()


def _tokens(keys: _Keys, warnings: list[str]) -> tuple[list[str], dict[str, int]]:
    tokens = keys.strings("tokens")
    if not tokens:
        missing = "missing" if tokens is None else "empty"
        raise TokenizerError(f"The file has no vocabulary: {PREFIX}tokens is {missing}.", _DAMAGED)
    if "" in tokens:
        tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
        warnings.append(f"{len(tokens) - len(ids)} tokens of the vocabulary have the text of another token.")
    return tokens, ids


def _scores(keys: _Keys, n: int) -> NDArray[np.float32] | None:
    scores = keys.array("scores", "fiu", "an array of numbers")
    if scores is None:
        return None
    if scores.size != n:
        raise TokenizerError(f"{PREFIX}scores has {scores.size} entries, but there are {n} tokens.", _DAMAGED)
    return np.asarray(scores, dtype=np.float32)


def _attrs(keys: _Keys, n: int) -> NDArray[np.uint8]:
    types = keys.array("token_type", "iu", "an array of integers")
    if types is None:
        return np.full(n, Attr.NORMAL, dtype=np.uint8)
    if types.size != n:
        raise TokenizerError(f"{PREFIX}token_type has {types.size} entries, but there are {n} tokens.", _DAMAGED)
    known = (types >= 0) & (types < len(_ATTR_OF_TYPE))
    return _ATTR_OF_TYPE[np.where(known, types, 0)]


def _pretokenizer(model: str, pre: str | None, warnings: list[str]) -> tuple[str, Pretokenizer | None]:
    if model == "gemma4":
        return "gemma4", PRETOKENIZERS["gemma4"]
    if model != "gpt2":
        return pre or "default", None
    if not pre:
        warnings.append(f"{PREFIX}pre is missing; the default pre-tokenizer is used and answers may be worse.")
        return "default", PRETOKENIZERS["default"]
    if pre not in PRETOKENIZERS:
        warnings.append(f"The pre-tokenizer {pre!r} is unknown; the default one is used and answers may be worse.")
        return pre, PRETOKENIZERS["default"]
    return pre, PRETOKENIZERS[pre]


def _special_ids(keys: _Keys, model: str, pre: str, n: int, warnings: list[str]) -> dict[str, int]:
    special = {name: token for name, token in _DEFAULT_IDS[model].items() if token < n}
    if pre in ("glm4", "chatglm-bpe"):
        special.pop("bos", None)
    for name, names_of_keys in _ID_KEYS.items():
        for key in names_of_keys:
            token = keys.integer(key)
            if token is None:
                continue
            if 0 <= token < n:
                special[name] = token
            else:
                warnings.append(f"{PREFIX}{key} = {token} is outside of the vocabulary of {n} tokens and is ignored.")
    return special


def _known_by_text(
    tokens: Sequence[str], ids: Mapping[str, int], attrs: NDArray[np.uint8], special: dict[str, int]
) -> frozenset[int]:
    """Finds the special tokens that only their text gives away, corrects `attrs`, returns the end tokens."""

    def find(name: str, texts: Sequence[str]) -> None:
        if name in special:
            return
        token = next((ids[text] for text in texts if text in ids), None)
        if token is not None:
            special[name] = token
            attrs[token] |= Attr.CONTROL

    find("eot", _END_OF_TURN)
    find("eom", ("<|eom_id|>",))
    for name, texts in _FIM.items():
        find(name, texts)

    ends = {special[name] for name in ("fim_pad", "fim_rep", "fim_sep") if name in special}
    for text in _END_OF_GENERATION:
        if text in ids:
            ends.add(ids[text])
            attrs[ids[text]] |= Attr.CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            attrs[ids[text]] = Attr.USER_DEFINED
    ends |= {special[name] for name in ("eos", "eot", "eom") if name in special}

    texts_of_ends = {tokens[token] for token in ends}
    calls = {"<|call|>", "<|calls|>"} & texts_of_ends
    if "<|end|>" in texts_of_ends and calls and {"<|return|>", "<|flush|>"} & texts_of_ends:
        # gpt-oss and solar-open: <|end|> ends a message of the turn, not the turn.
        ends.discard(ids["<|end|>"])
        attrs[ids["<|end|>"]] = Attr.USER_DEFINED
    if {"<|tool_response>", "</s>"} <= texts_of_ends:
        ends.discard(ids["</s>"])  # gemma-4 has it as ordinary text
        attrs[ids["</s>"]] = Attr.NORMAL
    return frozenset(ends)


def _strips(metadata: Mapping[str, Any], pre: str, ids: Mapping[str, int], attrs: NDArray[np.uint8]) -> None:
    """Sets LSTRIP and RSTRIP; the format has no place for them, so the model's name decides."""
    name = str(metadata.get("general.name", "")).lower()
    architecture = str(metadata.get("general.architecture", ""))
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or architecture in (
        "nomic-bert-moe",
        "jina-bert-v3",
    ):
        if "<mask>" in ids:
            attrs[ids["<mask>"]] |= Attr.LSTRIP
    elif "phi-3" in name or "phi3" in name:
        attrs[(attrs & (Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)) != 0] |= np.uint8(Attr.RSTRIP)
        if "</s>" in ids:
            attrs[ids["</s>"]] |= Attr.RSTRIP
        for text in ("<unk>", "<s>", "<|endoftext|>"):
            if text in ids:
                attrs[ids[text]] &= ~np.uint8(Attr.RSTRIP)
    elif "modern-bert" in name and "[MASK]" in ids:
        attrs[ids["[MASK]"]] |= Attr.LSTRIP


def _adds(
    keys: _Keys, model: str, pretokenizer: Pretokenizer | None, special: Mapping[str, int], warnings: list[str]
) -> tuple[bool, bool]:
    by_default = pretokenizer.add_bos if pretokenizer else model in ("llama", "bert")
    add_bos = keys.boolean("add_bos_token", by_default) or model == "gemma4"
    add_eos = keys.boolean("add_eos_token", model == "t5")
    if model == "bert":  # the frame [CLS] ... [SEP] is not optional
        return True, "sep" in special
    for name, wanted in (("bos", add_bos), ("eos", add_eos)):
        if wanted and name not in special:
            warnings.append(f"{PREFIX}add_{name}_token is set, but the vocabulary has no such token.")
    return add_bos and "bos" in special, add_eos and "eos" in special
