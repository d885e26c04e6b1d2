"""Every published case, to the token and to the character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import REAL_MODELS, read_tokenizer

VOCABULARIES = ["gemma-4", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"]
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest, fixtures_dir: Path) -> tuple[Path, Tokenizer]:
    path = fixtures_dir / "tokenizers" / f"ggml-vocab-{request.param}.gguf"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the reference data")
    return path, read_tokenizer(path)


def test_published_cases(vocabulary: tuple[Path, Tokenizer]) -> None:
    path, tokenizer = vocabulary
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    answers = Path(f"{path}.out").read_text().splitlines()
    for text, answer in zip(texts, answers, strict=False):
        assert tokenizer.encode(text, add_special=False) == [int(token) for token in answer.split()], text
    assert len(texts) > 40


def check_random_strings(path: Path, tokenizer: Tokenizer) -> None:
    cases: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
    assert cases
    for case in cases:
        text = case["text"]
        assert tokenizer.encode(text, add_special=False) == case["ids"], ascii(text)
        assert tokenizer.encode(text, add_special=False, parse_special=True) == case["ids_special"], ascii(text)
        if "detok" in case:
            assert tokenizer.decode(case["ids"]) == case["detok"], ascii(text)


def test_random_strings(vocabulary: tuple[Path, Tokenizer]) -> None:
    path, tokenizer = vocabulary
    check_random_strings(path.with_name(f"random-vocab-{path.stem.removeprefix('ggml-vocab-')}.json"), tokenizer)


def test_random_strings_of_the_starter_model(fixtures_dir: Path, starter_model: Path) -> None:
    check_random_strings(fixtures_dir / "tokenizers" / "random-smollm2-135m.json", read_tokenizer(starter_model))


@pytest.mark.parametrize("name", REAL_MODELS)
def test_random_strings_of_real_models(name: str, fixtures_dir: Path, models_dir: Path) -> None:
    path = models_dir / REAL_MODELS[name]
    if not path.is_file():
        pytest.skip(f"no {path.name} among the models")
    check_random_strings(fixtures_dir / "tokenizers" / f"random-{name}.json", read_tokenizer(path))


def test_end_tokens(vocabulary: tuple[Path, Tokenizer]) -> None:
    path, tokenizer = vocabulary
    expected = {
        "gemma-4": {"<eos>", "<turn|>", "<|tool_response>"},
        "gpt-2": {"<|endoftext|>"},
        "llama-bpe": {"<|end_of_text|>", "<|eot_id|>"},
        "llama-spm": {"</s>"},
        "phi-3": {"</s>", "<|endoftext|>", "<|end|>"},
        "qwen2": {"<|endoftext|>", "<|im_end|>", "</s>"},
    }
    name = path.stem.removeprefix("ggml-vocab-")
    assert {tokenizer.token_text(token) for token in tokenizer.end_tokens} == expected[name]
