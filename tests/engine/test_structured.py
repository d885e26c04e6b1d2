"""Answers with a grammar through the whole engine: they match it, and equal what the model says of allowed tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import (
    DraftKind,
    DraftOptions,
    Failed,
    Finished,
    GenerateRequest,
    LoadOptions,
    SamplingParams,
    StopReason,
    Token,
)
from engine.engine import Engine
from engine.errors import RequestError
from engine.grammar import Grammars
from tests.engine.fakes import END, GREEDY, N_VOCAB, FakeBundle, FakeModel, FakeTokenizer, hashed_logits, loader_of
from tests.engine.generation import generate

WAIT = 20.0
ANSWER = 'root ::= "{\\"name\\": \\"" [a-z]{3,9} "\\", \\"age\\": " [1-9] [0-9]? "}"'
PATTERN = r'\{"name": "[a-z]{3,9}", "age": [1-9][0-9]?\}'
Start = Callable[..., Engine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    path = tmp_path / "fake.gguf"
    path.write_bytes(b"GGUF")
    engines: list[Engine] = []

    def run(bundle: FakeBundle) -> Engine:
        engine = Engine(loader_of(bundle))
        engines.append(engine)
        engine.load(path).result(WAIT)
        return engine

    yield run
    for started in engines:
        started.close()


def ask(**more: Any) -> GenerateRequest:
    more.setdefault("sampling", GREEDY)
    more.setdefault("grammar", ANSWER)
    return GenerateRequest(prompt_tokens=[1, 2, 3], **more)


def likeliest_match(prompt: list[int]) -> bytes:
    """Byte by byte the likeliest one after which the answer may still match, ending when END is likelier."""
    tokens, text = list(prompt), b""
    while True:
        scores = hashed_logits(tuple(tokens))
        partial = [
            byte for byte in range(256) if re.fullmatch(_begun(), (text + bytes([byte])).decode("latin-1")) is not None
        ]
        if re.fullmatch(PATTERN, text.decode()):
            partial.append(END)
        token = max(partial, key=lambda t: scores[t])
        if token == END:
            return text
        tokens.append(token)
        text += bytes([token])


def _begun() -> str:
    """Whatever the pattern's matches begin with."""
    parts = [*'{"name": "', "[a-z]", "[a-z]", "[a-z]", *["[a-z]?"] * 6, *'", "age": ', "[1-9]", "[0-9]?", "}"]
    pattern = ""
    for part in reversed(parts):
        part = part if part.startswith("[") else re.escape(part)
        pattern = f"(?:{part}{pattern})?" if not part.endswith("?") else f"(?:{part}{pattern})"
    return pattern


def test_an_answer_is_the_likeliest_that_matches_and_forced_text_costs_no_steps(start: Start) -> None:
    bundle = FakeBundle(FakeModel())
    result = generate(start(bundle), ask())
    assert re.fullmatch(PATTERN, result.text)
    assert result.text.encode() == likeliest_match([1, 2, 3])
    assert result.stop_reason is StopReason.EOS
    assert result.tokens[-1] == END
    # '{', 'name": "' without its last byte, letters, '", "age": ' without its last byte
    assert len(bundle.model.batches) < len(result.tokens) - 12


def test_probabilities_are_told_of_every_token_then(start: Start) -> None:
    events: list[Any] = []
    engine = start(FakeBundle(FakeModel()))
    result = generate(engine, ask(logprobs=1), events.append)
    assert result.text.encode() == likeliest_match([1, 2, 3])
    assert all(event.logprob is not None for event in events if isinstance(event, Token))


@pytest.mark.parametrize("params", [SamplingParams(seed=3), SamplingParams(seed=5, top_k=0, min_p=0, top_p=1)])
@pytest.mark.parametrize("draft", [None, DraftOptions(DraftKind.NGRAM)])
def test_sampled_answers_match_with_and_without_guessing(
    start: Start, params: SamplingParams, draft: DraftOptions | None
) -> None:
    engine = start(FakeBundle(FakeModel()))
    for _ in range(3):
        assert re.fullmatch(PATTERN, generate(engine, ask(sampling=params, draft=draft)).text)


def test_greedy_answers_are_the_same_with_guessing(start: Start) -> None:
    grammar = 'root ::= ("abcabc" [xy])+'
    engine = start(FakeBundle(FakeModel()))
    plain = generate(engine, ask(grammar=grammar, max_tokens=60))
    guessed = generate(engine, ask(grammar=grammar, max_tokens=60, draft=DraftOptions(DraftKind.NGRAM)))
    assert plain.tokens == guessed.tokens


def test_a_crowd_in_little_memory_gets_the_same_answers(start: Start) -> None:
    """Forced tokens need several blocks' room at once; others have to give way and come back."""
    grammar = 'root ::= "' + "forced text that goes on for more than one block of the cache, " * 2 + '" [a-z]{5}'
    requests = [ask(grammar=grammar, max_tokens=200) for _ in range(6)]
    alone = generate(start(FakeBundle(FakeModel())), requests[0])
    crowd = start(FakeBundle(FakeModel(n_blocks=14, max_rows=40)))
    streams = [crowd.submit(request) for request in requests]
    for stream in streams:
        assert [event.token for event in stream if isinstance(event, Token)] == alone.tokens


def test_several_answers_to_one_prompt_match_each(start: Start) -> None:
    engine = start(FakeBundle(FakeModel()))
    streams = engine.submit_parallel(ask(sampling=SamplingParams(seed=4)), 3)
    texts = ["".join(getattr(event, "text", "") for event in stream) for stream in streams]
    assert all(re.fullmatch(PATTERN, text) for text in texts)
    assert len(set(texts)) == 3


def test_stop_strings_and_limits_end_an_answer_within_forced_text(start: Start) -> None:
    engine = start(FakeBundle(FakeModel()))
    stopped = generate(engine, ask(stop=["ame"]))
    assert (stopped.text, stopped.stop_reason) == ('{"n', StopReason.STOP)
    limited = generate(engine, ask(max_tokens=4))
    assert (limited.text, limited.stop_reason) == ('{"na', StopReason.LENGTH)


def test_an_answer_goes_on_where_it_stopped() -> None:
    grammars = Grammars(FakeTokenizer(), N_VOCAB)
    request = GenerateRequest(prompt="Who?", grammar='root ::= "name: " [a-z]{3}')
    constraint = grammars.constraint(replace(request, answer_so_far="name: ab"))
    assert constraint is not None
    assert not constraint.may_end
    constraint.accept(ord("c"))
    assert constraint.complete
    with pytest.raises(RequestError, match="does not match the grammar"):
        grammars.constraint(replace(request, answer_so_far="other"))


def test_a_vocabulary_without_end_tokens_ends_when_the_grammar_does(start: Start) -> None:
    class Endless(FakeTokenizer):
        end_tokens = frozenset()

    result = generate(start(FakeBundle(FakeModel(), Endless())), ask())
    assert re.fullmatch(PATTERN, result.text)
    assert result.stop_reason is StopReason.STOP


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ask(grammar='root ::= "a'), "line 1, column 10"),
        (ask(grammar=None, json_schema={"type": "strange"}), "'strange' is no type"),
        (ask(json_schema={}, grammar="root ::= [a]"), "either a grammar or a JSON schema"),
        (ask(ignore_eos=True), "cannot be ignored"),
        (ask(grammar=5), "grammar is of type int"),
        (ask(grammar=None, json_schema=5), "json_schema is of type int"),
        (ask(grammar='root ::= "a"', sampling=SamplingParams(logit_bias={ord("a"): -np.inf})), "logit_bias bans every"),
    ],
)
def test_what_cannot_be_answered_is_said(start: Start, request_: GenerateRequest, says: str) -> None:
    with pytest.raises(RequestError, match=re.escape(says)):
        generate(start(FakeBundle(FakeModel())), request_)


def test_a_grammar_that_reads_a_text_in_too_many_ways_ends_its_answer_alone(start: Start) -> None:
    engine = start(FakeBundle(FakeModel()))
    endless = replace(GREEDY, logit_bias={END: -1000.0})
    many = engine.submit(ask(grammar='root ::= s\ns ::= "a" s s s | "a" s s | "a"', sampling=endless))
    other = engine.submit(ask())
    [error] = [event.error for event in many if isinstance(event, Failed)]
    assert "more than 4096 ways at once" in str(error)
    assert re.fullmatch(PATTERN, "".join(event.text for event in other if isinstance(event, Token | Finished)))


def test_the_starter_model_answers_in_json_of_a_schema(starter_model: Path) -> None:
    schema = {
        "type": "object",
        "properties": {
            "animal": {"type": "string", "minLength": 1, "maxLength": 20},
            "legs": {"type": "integer", "minimum": 0, "maximum": 100},
            "sounds": {"type": "array", "items": {"enum": ["miaow", "purr", "bark"]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["animal", "legs", "sounds"],
    }
    messages = [{"role": "user", "content": "Describe a cat as JSON with animal, legs and sounds."}]
    with Engine() as engine:
        engine.load(starter_model, LoadOptions(device="opencl", context_length=512)).result(120)
        for params in (GREEDY, SamplingParams(seed=1), SamplingParams(seed=2, temperature=2.0, top_k=0, min_p=0)):
            request = GenerateRequest(messages=messages, sampling=params, json_schema=schema, max_tokens=150)
            result = generate(engine, request)
            assert result.stop_reason is StopReason.EOS
            answer = json.loads(result.text)
            assert set(answer) == {"animal", "legs", "sounds"}
            assert 1 <= len(answer["animal"]) <= 20
            assert 0 <= answer["legs"] <= 100
            assert 1 <= len(answer["sounds"]) <= 3
            assert set(answer["sounds"]) <= {"miaow", "purr", "bark"}
