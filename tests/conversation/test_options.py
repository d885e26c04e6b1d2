"""The options of a chat survive storing, and a damaged or foreign value does not spoil the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.conversation import AdapterChoice, ChatOptions
from engine.api import DEFAULT_SAMPLERS, ContextPolicy, DraftKind, DraftOptions, SamplingParams
from engine.errors import RequestError

fractions = st.floats(0, 1)
options = st.builds(
    ChatOptions,
    system_prompt=st.text(),
    sampling=st.builds(
        SamplingParams,
        temperature=st.floats(0, 5),
        top_k=st.integers(0, 200),
        top_p=fractions,
        min_p=fractions,
        typical_p=fractions,
        repeat_penalty=st.floats(0.1, 3),
        seed=st.none() | st.integers(0, 2**32),
        logit_bias=st.dictionaries(st.integers(0, 1000), st.floats(-10, 10), max_size=3),
        samplers=st.permutations(DEFAULT_SAMPLERS).map(tuple),
    ),
    max_tokens=st.none() | st.integers(1, 10**6),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    adapters=st.lists(
        st.builds(
            AdapterChoice,
            path=st.text("abc/ äß.", min_size=1).map(lambda name: Path("/" + name)),
            strength=st.floats(-2, 2),
            on=st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
    draft=st.none()
    | st.builds(
        DraftOptions,
        kind=st.sampled_from(DraftKind),
        draft_k=st.integers(1, 16),
        max_draft_tokens=st.integers(1, 64),
        min_probability=fractions,
    ),
    context_policy=st.sampled_from(ContextPolicy),
)
forms = (
    st.just({})
    | st.builds(dict, grammar=st.text(min_size=1))
    | st.builds(dict, json_schema=st.text(min_size=1) | st.just({"type": "integer"}))
)


@given(options, forms)
def test_options_come_back_from_json_as_they_were(value: ChatOptions, form: dict[str, Any]) -> None:
    value = replace(value, **form)
    value.check()
    assert ChatOptions.from_json(json.loads(json.dumps(value.as_json()))) == value


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@given(
    st.sampled_from(["adapters", "draft", "context_policy", "json_schema"]),
    json_values | st.lists(st.just({"path": 1})),
)
def test_a_bad_value_of_what_came_later_leaves_the_others(name: str, bad: object) -> None:
    stored = ChatOptions(system_prompt="kept", context_policy=ContextPolicy.SHIFT).as_json()
    stored[name] = bad
    read = ChatOptions.from_json(stored)
    read.check()
    assert read.system_prompt == "kept"
    assert (read.adapters, read.draft) == ((), None)


@given(st.sampled_from([*SamplingParams.__dataclass_fields__]), json_values)
def test_one_bad_value_leaves_the_others(name: str, bad: object) -> None:
    stored = ChatOptions(system_prompt="kept", max_tokens=7).as_json()
    stored["sampling"][name] = bad
    read = ChatOptions.from_json(stored)
    read.check()
    assert (read.system_prompt, read.max_tokens) == ("kept", 7)
    assert replace(read.sampling, **{name: getattr(SamplingParams(), name)}) == SamplingParams()


@pytest.mark.parametrize(
    "stored", [None, 3, "text", [], {}, {"sampling": 1, "stop": "abc", "max_tokens": "x", "new": 1}]
)
def test_what_is_no_options_gives_the_defaults(stored: object) -> None:
    assert ChatOptions.from_json(stored) == ChatOptions()


@pytest.mark.parametrize(
    "bad",
    [
        ChatOptions(sampling=SamplingParams(temperature=-1)),
        ChatOptions(sampling=SamplingParams(top_p=float("nan"))),
        ChatOptions(sampling=SamplingParams(samplers=("top_k", "unheard_of"))),
        ChatOptions(max_tokens=0),
        ChatOptions(stop=("",)),
        ChatOptions(adapters=(AdapterChoice(Path("a.gguf"), 2.5),)),
        ChatOptions(adapters=(AdapterChoice(Path("a.gguf"), float("nan")),)),
        ChatOptions(draft=DraftOptions(DraftKind.NGRAM, draft_k=0)),
        ChatOptions(draft=DraftOptions(DraftKind.NGRAM, min_probability=1.5)),
    ],
)
def test_values_without_a_meaning_are_refused(bad: ChatOptions) -> None:
    with pytest.raises(RequestError):
        bad.check()


def test_a_chat_stored_before_there_were_more_samplers_gets_them() -> None:
    stored = ChatOptions().as_json()
    for name in [n for n in stored["sampling"] if n.startswith(("xtc", "dry", "dyna", "miro", "top_n"))]:
        del stored["sampling"][name]
    stored["sampling"]["samplers"] = ["penalties", "top_k", "typical_p", "top_p", "min_p", "temperature"]
    assert ChatOptions.from_json(stored) == ChatOptions()

    stored["sampling"]["samplers"] = ["temperature", "top_k"]  # chosen by somebody
    assert ChatOptions.from_json(stored).sampling.samplers == ("temperature", "top_k")
