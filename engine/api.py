"""What the rest of the program says to the engine and hears from it.

These are plain values: safe to pass between threads, free of Qt and of any backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import RealmError

DEFAULT_SAMPLERS: tuple[str, ...] = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
DEFAULT_BREAKERS: tuple[str, ...] = ("\n", ":", '"', "*")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Names and neutral values are llama.cpp's.

    temperature 0 means greedy. `samplers` is the order in which the chain runs; a name left out does not run.

    xtc_probability: how often the tokens of at least xtc_threshold are dropped, all but the least likely of them.
    dry_multiplier: how strongly a token is held back that would prolong a repetition of the text (0 is off): by
        dry_multiplier * dry_base ** (length - dry_allowed_length), where `length` is that of the repetition so far. It
        is looked for in the last dry_penalty_last_n tokens (-1: all) and does not reach across a sequence breaker.
    dynatemp_range: the temperature moves between temperature - range and temperature + range with the entropy of the
        candidates (0 is off), bent by dynatemp_exponent.
    top_n_sigma: keeps logits at most this many standard deviations below the largest (0 or less is off).
    mirostat: 1 or 2 keeps the surprise of the text near mirostat_tau bits, learning at the rate mirostat_eta; of the
        chain only the temperature runs then. 0 is off.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = DEFAULT_BREAKERS
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = -1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS


Message = Mapping[str, Any]
"""One turn of a chat as templates take it: {"role": "user", "content": "..."} and whatever else a template reads."""


@dataclass(frozen=True)
class AdapterUse:
    """A LoRA adapter and how strongly it acts.

    path: a GGUF file of type adapter, a PEFT folder, or a safetensors file with its adapter_config.json beside it.
    strength: multiplies the adapter's own scale (alpha / r, or alpha / sqrt(r) for rslora); 0 is exactly the base.
    """

    path: Path
    strength: float = 1.0


class DraftKind(StrEnum):
    """Where guesses at the next tokens come from."""

    NGRAM = "ngram"  # the conversation itself: what followed the same tokens before
    MODEL = "model"  # what Engine.load_draft loaded: a draft model, or a layer of the model's own file


@dataclass(frozen=True)
class DraftOptions:
    """Speculative decoding: guessed tokens are checked in one step; the output's distribution stays the target's.

    draft_k: tokens guessed per step at the start. The length then adapts to what is accepted and what it costs, at most
        to max_draft_tokens, and down to none while guessing does not pay.
    min_probability: a draft model's guesses end at the first token that it finds less likely than this.
    """

    kind: DraftKind
    draft_k: int = 5
    max_draft_tokens: int = 16
    min_probability: float = 0.0


class ContextPolicy(StrEnum):
    """What happens when an answer meets the end of the context."""

    STOP = "stop"  # it ends with StopReason.CONTEXT
    DROP_OLDEST = "drop_oldest"  # the oldest turns after the system prompt are left out, and the answer goes on
    SHIFT = "shift"  # the first tokens (attention sinks) stay, the oldest after them go


@dataclass(frozen=True)
class GenerateRequest:
    """One thing to answer. Exactly one of prompt, prompt_tokens and messages is set.

    prompt: raw text, tokenized with BOS where the model wants one, special tokens not parsed.
    messages: rendered through the model's chat template; what the messages contain never forges special tokens.
    plain_template: render messages through a plain template instead, for a model whose own one fails.
    answer_so_far: with messages, how the answer begins; what is generated goes on from there and does not repeat it.
    max_tokens: None means until the model stops or the context is full.
    adapters: act together, each with its strength; Engine.set_adapters changes them between two tokens.
    draft: None guesses nothing.
    context_policy: DROP_OLDEST needs messages; a prompt that is too long by itself is shortened by it too.
    priority: of two waiting requests the one with the higher number goes first.
    session: a file that keeps the keys and values of this chat: read before the prompt is computed, where it fits it,
        and written when the answer has ended.
    grammar: GBNF that the answer has to match as a whole; where it can be complete the model may end, and only there.
    json_schema: a JSON schema, or its text; the answer is JSON that it describes. At most one of it and grammar is set.
    logprobs: how many of the likeliest tokens each Token names as alternatives, with their log probabilities; 0 gives
        none, and no log probability of the token itself.
    """

    prompt: str | None = None
    prompt_tokens: Sequence[int] | None = None
    messages: Sequence[Message] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    plain_template: bool = False
    answer_so_far: str = ""
    adapters: Sequence[AdapterUse] = ()
    draft: DraftOptions | None = None
    context_policy: ContextPolicy = ContextPolicy.STOP
    priority: int = 0
    session: Path | None = None
    grammar: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    logprobs: int = 0


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one."""

    MEAN = "mean"
    CLS = "cls"  # the first token's
    LAST = "last"
    NONE = "none"  # they do not: every token keeps its own


@dataclass(frozen=True)
class Embeddings:
    """vectors: float32 [texts, width], of length 1 where `normalised`; with Pooling.NONE [all tokens, width], a text's
    tokens after those of the text before.

    token_counts: of each text, with the tokens that the model wants around it. truncated: the texts (from 0) that were
    cut to what the model takes.
    """

    vectors: NDArray[np.float32]
    token_counts: tuple[int, ...]
    pooling: Pooling
    normalised: bool
    truncated: tuple[int, ...] = ()


class StopReason(StrEnum):
    EOS = "eos"  # the model ended its turn
    STOP = "stop"  # a stop string appeared; the text ends before it
    LENGTH = "length"  # max_tokens reached
    CONTEXT = "context"  # the context is full
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Figures:
    """What one request measured. Seconds and tokens per second; bandwidth in GB/s (1e9 bytes)."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose keys and values were already there
    generated_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    time_to_first_token_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    decode_gb_per_s: float = 0.0
    decode_bandwidth_share: float | None = None  # of the device's measured read bandwidth, None until it is measured
    context_used: int = 0
    context_length: int = 0
    drafted_tokens: int = 0  # guesses that were checked
    accepted_tokens: int = 0  # guesses that became part of the answer
    draft_gain: float | None = None  # measured speed with guessing over without, None until both were measured
    drafting_paused: bool = False  # guessing does not pay at present
    dropped_tokens: int = 0  # of the prompt and the answer, left out because the context was full


@dataclass(frozen=True)
class Started:
    """The prompt is tokenized and work has begun. note: a sentence, when its session file was not what it should be."""

    prompt_tokens: int
    context_length: int
    note: str = ""


@dataclass(frozen=True)
class PrefillProgress:
    done: int
    total: int


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Token:
    """One new token. `text` holds the whole characters that became certain with it; it may be empty.

    Text that could still turn out to be a stop string is held back, so the concatenation of all `text`
    (with that of Finished) is exactly the answer.

    logprob, alternatives: where GenerateRequest.logprobs asks for them: the log-softmax of the model's logits, before
        bias, grammar and samplers; the alternatives are the likeliest tokens, likeliest first.
    """

    token: int
    text: str
    figures: Figures
    drafted: bool = False  # it was guessed and accepted
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Finished:
    reason: StopReason
    text: str  # what was still held back
    figures: Figures


@dataclass(frozen=True)
class Failed:
    error: RealmError


Event = Started | PrefillProgress | Token | Finished | Failed
"""A stream is Started, PrefillProgress*, Token*, then exactly one of Finished and Failed."""


KV_TYPES = ("f16", "q8_0", "q4_0")
"""Types of the cache of keys and values, most exact first."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model.

    device: "auto", "numpy", "opencl" (the best OpenCL device) or a device id from `list_devices()`; "A=12,B" puts the
        first 12 layers on A and the rest on B.
    context_length: None picks min(the model's own, 8192), or less where only that fits into memory.
    kv_tokens: tokens that the KV cache holds, of all requests together; where it is less than the context length, or
        None, that.
    kv_type: what keys and values are kept as, one of KV_TYPES: in half precision, or as whole numbers of 8 or 4 bits
        with a scale for every 32, which take about half and a quarter of the memory and are read as much faster.
    memory_limit: bytes that weights, keys and values, and scratch may take together; None is all that are free.
    """

    device: str = "auto"
    context_length: int | None = None
    kv_tokens: int | None = None
    kv_type: str = "f16"
    memory_limit: int | None = None


@dataclass(frozen=True)
class DeviceInfo:
    """One place to compute. `variants` names the kernel variants that compile there, best first."""

    id: str  # "numpy", "opencl:0", "opencl:1"
    name: str
    vendor: str
    kind: str  # "cpu", "gpu", "accelerator"
    driver: str
    memory_bytes: int
    variants: tuple[str, ...] = ()
    problem: str = ""  # a sentence, when the device is there but cannot be used


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded. Bytes are those held by the device."""

    path: Path
    name: str
    architecture: str
    parameters: int
    quantisation: str  # "Q4_1", the type most weights have
    file_bytes: int
    context_length: int
    trained_context_length: int
    vocab_size: int
    device: DeviceInfo
    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    has_chat_template: bool
    load_s: float
    predicted_peak_bytes: int = 0  # of the process's resident memory, planned before anything was loaded
    fingerprint: str = ""  # what files have in common that compute the same keys and values
    is_encoder: bool = False  # it gives embeddings only and cannot chat
    predicts: bool = False  # its file carries a layer that can guess for it: Engine.load_draft with its own path
    pooling: str = ""  # what its file asks for: mean, cls, last, none, rank or nothing
    notes: tuple[str, ...] = ()  # sentences the user should see: fallbacks, skipped tensors, unknown pre-tokenizer


class EngineState(StrEnum):
    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    GENERATING = "generating"
    FAILED = "failed"  # the last load failed; see EngineStatus.error
    CLOSED = "closed"


@dataclass(frozen=True)
class LoadProgress:
    """stage: "reading", "compiling", "weights", "measuring". fraction runs 0..1 over the whole load."""

    stage: str
    fraction: float
    detail: str = ""


@dataclass(frozen=True)
class AdapterInfo:
    """What a LoRA adapter is.

    kind: "gguf" or "peft". rank: the largest of its matrices. alpha: as the file says; strength 1 scales a matrix of
        the general rank by `scale`.
    targets: the kinds of tensors that it acts on: "attn_q", "ffn_down", "token_embd".
    base_model: what it says it was trained on; may be empty. architecture: empty where the file does not say.
    size_bytes: of its numbers in the file.
    notes: sentences: what a person should know before using it.
    """

    path: Path
    name: str
    kind: str
    architecture: str
    base_model: str
    rank: int
    alpha: float
    scale: float
    targets: tuple[str, ...]
    n_matrices: int
    size_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DraftInfo:
    """What is loaded beside the model to guess for it. Bytes are those held by the device.

    path: of the draft model, or the model's own where a layer of its file guesses.
    """

    path: Path
    name: str
    device: DeviceInfo
    weight_bytes: int
    kv_bytes: int
    notes: tuple[str, ...] = ()  # sentences: how the vocabularies differ, if harmlessly


@dataclass(frozen=True)
class EngineStatus:
    state: EngineState
    model: ModelInfo | None = None
    draft: DraftInfo | None = None
    progress: LoadProgress | None = None
    error: RealmError | None = None
    active_requests: int = 0
    queued_requests: int = 0
    figures: Figures | None = None  # of the request that ran last, or runs now
