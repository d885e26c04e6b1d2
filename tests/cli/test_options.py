"""Options of a request: from the command line and from JSON to the same values."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from app.cli.options import REQUEST_NAMES, add_sampling_arguments, generate_request, given_options, sampling_params
from engine.api import DEFAULT_SAMPLERS, AdapterUse, GenerateRequest, SamplingParams
from engine.errors import RequestError


def from_command_line(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_sampling_arguments(parser)
    return given_options(parser.parse_args(arguments))


def test_every_field_of_a_request_can_be_given() -> None:
    names = {field.name for kind in (GenerateRequest, SamplingParams) for field in fields(kind)} - {"sampling"}
    of_their_own = {"adapters", "draft"}  # not settings of one answer

    assert names - of_their_own <= REQUEST_NAMES <= names | {"lora"}  # which names adapters


def test_nothing_given_is_the_default() -> None:
    assert from_command_line() == {}
    assert generate_request({"prompt": "Hi"}) == GenerateRequest(prompt="Hi")


def test_the_command_line_sets_what_json_sets() -> None:
    given = from_command_line(
        *("--temperature", "0.5", "--top-k", "7", "--top-p", "0.8", "--min-p", "0.1", "--typical-p", "0.9"),
        *("--repeat-penalty", "1.1", "--repeat-last-n", "32", "--presence-penalty", "0.2"),
        *("--frequency-penalty", "0.3", "--seed", "42", "--max-tokens", "9", "--stop", "a", "--stop", "\n"),
        *("--xtc-probability", "0.5", "--xtc-threshold", "0.2", "--dry-multiplier", "0.8", "--dry-base", "2"),
        *("--dry-allowed-length", "3", "--dry-penalty-last-n", "99", "--dry-sequence-breaker", "."),
        *("--dry-sequence-breaker", ";", "--dynatemp-range", "0.25", "--dynatemp-exp", "2", "--top-n-sigma", "1.5"),
        *("--mirostat", "2", "--mirostat-ent", "4", "--mirostat-lr", "0.2"),
        *("--logit-bias", "15+1.5", "-l", "16-inf", "--samplers", "top_k;temperature", "--ignore-eos"),
    )
    expected = GenerateRequest(
        prompt="Hi",
        sampling=SamplingParams(
            temperature=0.5,
            top_k=7,
            top_p=0.8,
            min_p=0.1,
            typical_p=0.9,
            repeat_penalty=1.1,
            repeat_last_n=32,
            presence_penalty=0.2,
            frequency_penalty=0.3,
            xtc_probability=0.5,
            xtc_threshold=0.2,
            dry_multiplier=0.8,
            dry_base=2.0,
            dry_allowed_length=3,
            dry_penalty_last_n=99,
            dry_sequence_breakers=(".", ";"),
            dynatemp_range=0.25,
            dynatemp_exponent=2.0,
            top_n_sigma=1.5,
            mirostat=2,
            mirostat_tau=4.0,
            mirostat_eta=0.2,
            seed=42,
            logit_bias={15: 1.5, 16: float("-inf")},
            samplers=("top_k", "temperature"),
        ),
        max_tokens=9,
        stop=("a", "\n"),
        ignore_eos=True,
    )

    assert generate_request({**given, "prompt": "Hi"}) == expected
    line = {
        "prompt": "Hi",
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repeat_penalty": 1.1,
        "repeat_last_n": 32,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "dry_multiplier": 0.8,
        "dry_base": 2,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 99,
        "dry_sequence_breakers": [".", ";"],
        "dynatemp_range": 0.25,
        "dynatemp_exponent": 2,
        "top_n_sigma": 1.5,
        "mirostat": 2,
        "mirostat_tau": 4,
        "mirostat_eta": 0.2,
        "seed": 42,
        "logit_bias": {"15": 1.5, "16": float("-inf")},
        "samplers": ["top_k", "temperature"],
        "max_tokens": 9,
        "stop": ["a", "\n"],
        "ignore_eos": True,
    }
    assert generate_request(line) == expected


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--temp", "0"], "temperature", 0.0),
        (["-n", "3"], "max_tokens", 3),
        (["--n-predict", "3"], "max_tokens", 3),
        (["-s", "5"], "seed", 5),
        (["--typical", "0.5"], "typical_p", 0.5),
    ],
)
def test_short_names_of_the_field_are_understood(flags: list[str], name: str, value: float) -> None:
    assert from_command_line(*flags) == {name: value}


def test_samplers_go_by_their_names_in_llama_cpp_too() -> None:
    order = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"
    assert sampling_params({"samplers": order}).samplers == DEFAULT_SAMPLERS


def test_a_seed_of_minus_one_draws_one() -> None:
    assert sampling_params({"seed": -1}).seed is None


def test_settings_that_are_not_given_keep_those_of_the_chat() -> None:
    chat = SamplingParams(temperature=0.1, top_k=3)

    assert sampling_params({"top_k": 5}, chat) == SamplingParams(temperature=0.1, top_k=5)


def test_a_single_stop_string_needs_no_array() -> None:
    assert generate_request({"prompt": "Hi", "stop": "."}).stop == (".",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "has none"),
        ({"prompt": "a", "prompt_tokens": [1]}, "prompt and prompt_tokens"),
        ({"prompt": 5}, "prompt has to be a text"),
        ({"prompt": "\ud83d"}, r"ud83d alone"),
        ({"prompt_tokens": "1,2"}, "array of token ids"),
        ({"prompt_tokens": [1, "2"]}, "at place 2"),
        ({"messages": "Hi"}, "array of objects"),
        ({"prompt": "a", "temprature": 1}, "no option 'temprature'"),
        ({"prompt": "a", "top_k": 1.5}, "top_k has to be a whole number"),
        ({"prompt": "a", "top_k": True}, "top_k has to be a whole number"),
        ({"prompt": "a", "temperature": "hot"}, "temperature has to be a number"),
        ({"prompt": "a", "temperature": 10**400}, "temperature is too large"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens has to be a whole number"),
        ({"prompt": "a", "stop": 5}, "stop has to be"),
        ({"prompt": "a", "stop": [5]}, "stop has to be"),
        ({"prompt": "a", "ignore_eos": 1}, "ignore_eos has to be true or false"),
        ({"prompt": "a", "logit_bias": "x"}, "logit_bias has to be"),
        ({"prompt": "a", "logit_bias": ["15"]}, "logit_bias takes"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias takes"),
        ({"prompt": "a", "samplers": 5}, "samplers has to be"),
        ({"prompt": "a", "dry_sequence_breakers": ":"}, "dry_sequence_breakers has to be"),
        ({"prompt": "a", "logprobs": True}, "logprobs has to be a whole number"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        generate_request(options)

    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("given", "path", "strength"),
    [
        ("a.gguf", "a.gguf", 1.0),
        ("a.gguf:0.5", "a.gguf", 0.5),
        ("folder/b:-1e-1", "folder/b", -0.1),
        (r"C:\models\a.gguf", r"C:\models\a.gguf", 1.0),
        (r"C:\models\a.gguf:2", r"C:\models\a.gguf", 2.0),
        ("D:/a", "D:/a", 1.0),
        ({"path": "a:1", "strength": 0}, "a:1", 0.0),
    ],
)
def test_an_adapter_is_a_path_and_perhaps_a_strength(given: object, path: str, strength: float) -> None:
    assert generate_request({"prompt": "Hi", "lora": given}).adapters == (AdapterUse(Path(path), strength),)


@pytest.mark.skipif(os.name == "nt", reason="names have no colons there")
def test_a_colon_of_an_adapters_name_is_none_before_a_strength(tmp_path: Path) -> None:
    (tmp_path / "pirate:1").mkdir()
    path = f"{tmp_path}/pirate:1"
    for given, strength in ((path, 1.0), (f"{path}:0.5", 0.5)):
        assert generate_request({"prompt": "Hi", "lora": given}).adapters == (AdapterUse(Path(path), strength),)
    (tmp_path / "pirate").mkdir()
    use = AdapterUse(tmp_path / "pirate", 1.0)
    assert generate_request({"prompt": "Hi", "lora": path}).adapters == (use,)
    assert generate_request({"prompt": "Hi", "lora": "x" * 5000 + ":0.5"}).adapters[0].strength == 0.5


def test_several_adapters_act_together() -> None:
    options = from_command_line("--lora", "a:0.5", "--lora", "b")
    uses = generate_request({"prompt": "Hi", **options}).adapters
    assert uses == (AdapterUse(Path("a"), 0.5), AdapterUse(Path("b"), 1.0))


@pytest.mark.parametrize("strength", [2.5, -3, float("inf")])
def test_an_adapter_acts_as_strongly_here_as_the_window_lets_it(strength: float) -> None:
    for given in (f"a.gguf:{strength}", {"path": "a.gguf", "strength": strength}):
        with pytest.raises(RequestError, match=r"strength of the adapter a.gguf .* from -2 to 2"):
            generate_request({"prompt": "Hi", "lora": given})


@pytest.mark.parametrize("wrong", ["a.gguf:strong", "", 7, [None], {"file": "a"}, {"path": "a", "strength": "1"}])
def test_what_is_no_adapter_is_told(wrong: object) -> None:
    with pytest.raises(RequestError):
        generate_request({"prompt": "Hi", "lora": wrong})
