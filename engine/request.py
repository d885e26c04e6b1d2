"""What a request asks for, checked, and its prompt as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from engine.api import ContextPolicy, DraftKind, DraftOptions, GenerateRequest
from engine.chat_template import ChatTemplate, render_chat_tokens
from engine.errors import RequestError
from engine.sampling.params import is_integer
from engine.tokenizer import Tokenizer

MOST_LOGPROBS = 1000
MOST_PARALLEL = 1024
"""Answers to one prompt together."""


def check_request(request: GenerateRequest) -> None:
    """Raises RequestError when the request contradicts itself; what depends on the model is checked elsewhere."""
    given = [name for name in ("prompt", "prompt_tokens", "messages") if getattr(request, name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"A request has exactly one of prompt, prompt_tokens and messages; this one has "
            f"{' and '.join(given) or 'none of them'}."
        )
    if request.answer_so_far and request.messages is None:
        raise RequestError("answer_so_far belongs to messages, and this request has none.", "Add it to the prompt.")
    limit: Any = request.max_tokens
    if limit is not None and (not (is_integer(limit) and limit >= 1)):
        raise RequestError(f"max_tokens is {limit!r}, but it has to be a whole number from 1 up.", "Or leave it out.")
    alternatives: Any = request.logprobs
    if not (is_integer(alternatives) and 0 <= alternatives <= MOST_LOGPROBS):
        raise RequestError(
            f"logprobs is {alternatives!r}, but it has to be a whole number from 0 to {MOST_LOGPROBS}: so many "
            "alternatives are named with each token."
        )
    priority: Any = request.priority
    if not is_integer(priority):
        raise RequestError(f"priority is {priority!r}, but it has to be a whole number.", "0 is what others have.")
    policy: Any = request.context_policy
    if not isinstance(policy, ContextPolicy):
        raise RequestError(f"context_policy is {policy!r:.80}, but it has to be one of {', '.join(ContextPolicy)}.")
    if policy is ContextPolicy.DROP_OLDEST and request.messages is None:
        raise RequestError(
            "Only a chat has turns to drop, and this request has no messages.", "Shift the context instead, or stop."
        )
    session: Any = request.session
    if session is not None and not isinstance(session, Path):
        raise RequestError(f"session is {session!r:.80}, but it has to be the path of a file.")
    stop: Any = request.stop
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise RequestError(f"stop is {stop!r}, but it has to be a list of texts that are not empty.")
    _check_grammar(request)


def _check_grammar(request: GenerateRequest) -> None:
    grammar: Any = request.grammar
    if grammar is not None and not isinstance(grammar, str):
        raise RequestError(f"grammar is of type {type(grammar).__name__}, but it has to be text.")
    schema: Any = request.json_schema
    if schema is not None and not isinstance(schema, Mapping | str):
        raise RequestError(f"json_schema is of type {type(schema).__name__}, but it has to be an object or its text.")
    if grammar is not None and schema is not None:
        raise RequestError("A request has either a grammar or a JSON schema, not both.", "Leave one of them out.")
    if (grammar is not None or schema is not None) and request.ignore_eos:
        raise RequestError(
            "A grammar says where the answer ends, so that end cannot be ignored.",
            "Leave ignore_eos or the grammar out.",
        )
    if request.draft is not None:
        _check_draft_options(request.draft)


MAX_DRAFT_TOKENS = 64
"""The longest guess of one step."""


def _check_draft_options(draft: Any) -> None:
    if not isinstance(draft, DraftOptions) or not isinstance(draft.kind, DraftKind):
        raise RequestError(f"draft is {draft!r:.80}, but it has to be draft options of a known kind.")
    for name in ("draft_k", "max_draft_tokens"):
        value: Any = getattr(draft, name)
        if not (is_integer(value) and 1 <= value <= MAX_DRAFT_TOKENS):
            raise RequestError(
                f"{name} is {value!r}, but it has to be a whole number from 1 to {MAX_DRAFT_TOKENS}.",
                "To guess nothing, leave drafting out.",
            )
    low: Any = draft.min_probability
    if isinstance(low, bool) or not isinstance(low, Real) or not 0 <= float(low) <= 1:
        raise RequestError(f"min_probability is {low!r}, but it has to be a number from 0 to 1.")


def check_parallel(n: int) -> None:
    """Raises RequestError for a number of answers that nobody can ask for."""
    if not 1 <= n <= MOST_PARALLEL:
        raise RequestError(f"{n} answers were asked for.", f"Ask for 1 to {MOST_PARALLEL}.")


def parallel_request(request: GenerateRequest, number: int) -> GenerateRequest:
    """The request of parallel answer `number`: with a seed of its own, derived from the request's where that has one.

    Answer 0 is the request itself; only it has the session.
    """
    seed = request.sampling.seed
    if seed is not None and number:
        seed = int(np.random.SeedSequence([abs(seed), number]).generate_state(1)[0])
    return replace(request, sampling=replace(request.sampling, seed=seed), session=None if number else request.session)


def prompt_tokens(request: GenerateRequest, tokenizer: Tokenizer, template: ChatTemplate, n_vocab: int) -> list[int]:
    """The prompt of a checked request; at least one token. Raises RequestError, TokenizerError or TemplateError."""
    if request.messages is not None:
        tokens = message_tokens(request.messages, tokenizer, template, request.answer_so_far)
    elif request.prompt is not None:
        tokens = text_tokens(request.prompt, tokenizer)
    else:
        tokens = _checked_ids(request.prompt_tokens or (), n_vocab)
    if tokens:
        return tokens
    if tokenizer.bos is None:
        raise RequestError("The prompt is empty, and this model has no token to begin a text with.", "Write something.")
    return [tokenizer.bos]


def text_tokens(prompt: str, tokenizer: Tokenizer) -> list[int]:
    if not isinstance(prompt, str):
        raise RequestError(f"prompt is of type {type(prompt).__name__}, but it has to be text.")
    return tokenizer.encode(prompt)


def message_tokens(
    messages: Sequence[Any], tokenizer: Tokenizer, template: ChatTemplate, answer_so_far: str = ""
) -> list[int]:
    if isinstance(messages, str) or not messages:
        raise RequestError("messages has to be a list with at least one message.", "Write something.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"Message {number} has to be an object with a role, but it is {message!r:.80}.")
    return render_chat_tokens(template, tokenizer, messages, answer_so_far=answer_so_far)


def _checked_ids(ids: Sequence[Any], n_vocab: int) -> list[int]:
    for place, token in enumerate(ids):
        if not (is_integer(token) and 0 <= token < n_vocab):
            raise RequestError(f"prompt_tokens[{place}] is {token!r}, but this model's tokens are 0 to {n_vocab - 1}.")
    return [int(token) for token in ids]
