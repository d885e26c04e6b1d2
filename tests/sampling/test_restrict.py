"""Asking a grammar for the likeliest tokens one by one leaves the same candidates as masking them all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.api import SamplingParams
from engine.errors import RequestError
from engine.grammar import CompiledGrammar
from engine.sampling import Sampler
from tests.grammar.spelling import Spelled

WORDS = [bytes([97 + i % 26, 97 + i // 26 % 26, 48 + i % 7]) for i in range(700)]
SPELLING = Spelled([*WORDS, *(bytes([byte]) for byte in range(256))])
GRAMMARS = ['root ::= "a" [a-m0-9]* | [b-z] [a-z]+ [0-6]', "root ::= [^x]*", 'root ::= "q" [a-z] "1" [0-9]*']


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, repeat_penalty=1.7, logit_bias={3: 4.0}),
        SamplingParams(),
        SamplingParams(top_k=7, repeat_penalty=1.5, dry_multiplier=0.8),
        SamplingParams(top_k=0, top_n_sigma=2.0, xtc_probability=1.0),
        SamplingParams(samplers=("min_p", "temperature", "top_k")),
    ],
)
def test_candidates_are_those_of_the_whole_mask(grammar: str, params: SamplingParams) -> None:
    n = SPELLING.n_vocab
    random = np.random.default_rng(2)
    history = random.integers(0, n, 30).tolist()
    for _ in range(20):
        logits = np.round(random.standard_normal(n) * 4, 1).astype(np.float32)  # coarse: with ties
        constraint = CompiledGrammar(grammar, SPELLING, n).start()
        masked = np.full(n, -np.inf, np.float32)
        known = CompiledGrammar(grammar, SPELLING, n).start().allowed()
        ids = (
            known.ids
            if known.ids is not None
            else np.delete(np.arange(n), known.banned if known.banned is not None else [])
        )
        masked[ids] = logits[ids]
        asked = Sampler(replace(params, seed=1), n, None, constraint).candidates(logits, history)
        whole = _of_allowed(Sampler(replace(params, seed=1), n), masked, history)
        places = np.arange(n) if asked.ids is None else asked.ids
        possible = asked.logits > -np.inf
        if params.temperature == 0:
            best = places[np.argmax(asked.logits)]
            assert best == max(whole, key=lambda token: (whole[token], -token))
        else:
            found = dict(zip(places[possible].tolist(), asked.logits[possible].tolist(), strict=True))
            assert found.keys() == whole.keys()
            assert found == pytest.approx(whole, abs=1e-5)


def _of_allowed(sampler: Sampler, masked: np.ndarray, history: list[int]) -> dict[int, float]:
    """What the chain leaves of masked logits, which a model never gives: they are put in as a bias."""
    sampler._bias_ids = np.concatenate([sampler._bias_ids, np.flatnonzero(masked == -np.inf)])
    sampler._bias = np.concatenate([sampler._bias, np.full(np.count_nonzero(masked == -np.inf), -np.inf, np.float32)])
    remaining = sampler.candidates(np.where(masked == -np.inf, np.float32(0), masked), history)
    places = np.arange(len(masked)) if remaining.ids is None else remaining.ids
    possible = remaining.logits > -np.inf
    return dict(zip(places[possible].tolist(), remaining.logits[possible].tolist(), strict=True))


def test_a_grammar_that_no_token_can_go_on_with_is_an_error() -> None:
    poor = Spelled([b"a", b"b", b"ab"])
    constraint = CompiledGrammar('root ::= "ab" "c"', poor, poor.n_vocab).start()
    sampler = Sampler(SamplingParams(temperature=0), poor.n_vocab, None, constraint)
    logits = np.zeros(poor.n_vocab, np.float32)
    for _ in range(2):
        sampler.accept(sampler.draw(sampler.candidates(logits, [])))
        if not sampler._constraint or sampler._constraint.allowed().empty:
            break
    with pytest.raises(RequestError, match="no token of this model begins"):
        sampler.candidates(logits, [])
