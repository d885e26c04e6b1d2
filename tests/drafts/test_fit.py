"""Which drafts fit which models, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.drafts.fit import check_draft, compare_vocabularies, shared_tokens
from engine.errors import ModelFileError
from engine.tokenizer.vocabulary import Vocabulary, read_vocabulary
from tests.tokenizer.vocabularies import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    FakeFile,
    bpe_metadata,
    sentencepiece_metadata,
)


def vocabulary(metadata: dict[str, Any]) -> Vocabulary:
    return read_vocabulary(FakeFile(metadata))


def with_tokens(changes: dict[int, str] | None = None, added: tuple[tuple[str, int], ...] = ()) -> Vocabulary:
    """The small BPE vocabulary with other texts at some ids, and tokens behind its last: (text, type)."""
    metadata = bpe_metadata()
    tokens = list(metadata["tokenizer.ggml.tokens"])
    for token, text in (changes or {}).items():
        tokens[token] = text
    types = [*metadata["tokenizer.ggml.token_type"], *(kind for _, kind in added)]
    metadata["tokenizer.ggml.tokens"] = tokens + [text for text, _ in added]
    metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    return vocabulary(metadata)


SAME = with_tokens()
N = len(SAME.tokens)


def test_equal_vocabularies_fit_and_share_everything() -> None:
    fit = compare_vocabularies(SAME, with_tokens())
    assert fit.fits
    assert fit.reason == ""
    shared = shared_tokens(SAME, with_tokens())
    assert shared.shared.all()
    assert shared.stand_in.tolist() == list(range(N))


def test_the_first_token_that_differs_is_named_with_both_texts() -> None:
    fit = compare_vocabularies(SAME, with_tokens({70: "other", 200: "another"}))
    assert not fit.fits
    assert fit.reason == f"Token 70 is {SAME.tokens[70]!r} in the model, but 'other' in the draft (2 tokens differ)."
    fit = compare_vocabularies(SAME, with_tokens({3: "x"}))
    assert f"Token 3 is {SAME.tokens[3]!r}" in fit.reason


def test_a_special_token_in_the_midst_of_the_ordinary_ones_has_to_be_the_same() -> None:
    a, b = (vocabulary(sentencepiece_metadata()) for _ in range(2))
    assert compare_vocabularies(a, b).fits
    tokens = list(sentencepiece_metadata()["tokenizer.ggml.tokens"])
    tokens[2] = "<end>"
    fit = compare_vocabularies(a, vocabulary(sentencepiece_metadata(tokens=tokens)))
    assert fit.reason == "Token 2 is '</s>' in the model, but '<end>' in the draft."


def test_kinds_have_to_be_the_same() -> None:
    fit = compare_vocabularies(SAME, vocabulary(sentencepiece_metadata()))
    assert not fit.fits
    assert "'llama'" in fit.reason
    assert "'gpt2'" in fit.reason


@pytest.mark.parametrize(
    "added",
    [
        (("[PAD1]", UNUSED), ("[PAD2]", UNUSED)),
        (("<|new|>", CONTROL),),
        (("<tool>", USER_DEFINED), ("<|x|>", CONTROL)),
        (("word", NORMAL),),
    ],
)
def test_padding_and_added_tokens_do_no_harm(added: tuple[tuple[str, int], ...]) -> None:
    more = with_tokens(added=added)
    for target, draft in ((SAME, more), (more, SAME)):
        fit = compare_vocabularies(target, draft)
        assert fit.fits
        assert "never guessed" in fit.reason
        shared = shared_tokens(target, draft)
        assert len(shared.shared) == len(target.tokens)
        assert shared.shared[:N].all()
        assert not shared.shared[N:].any()
        assert shared.stand_in.max() < len(draft.tokens)


def test_added_tokens_of_the_same_place_may_differ_and_stand_for_each_other_by_text() -> None:
    target = with_tokens(added=(("<|a|>", CONTROL), ("<|b|>", CONTROL)))
    draft = with_tokens(added=(("<|b|>", CONTROL), ("[PAD7]", UNUSED), ("[PAD8]", UNUSED)))
    assert compare_vocabularies(target, draft).fits
    shared = shared_tokens(target, draft)
    assert not shared.shared[N:].any()
    assert shared.stand_in[N + 1] == N  # <|b|>
    assert shared.stand_in[N] == draft.special["eos"]


def test_padding_may_stand_where_the_other_has_a_token() -> None:
    fit = compare_vocabularies(SAME, with_tokens({N - 2: "[PAD3]", 100: "<unused7>"}))
    assert fit.fits
    assert not shared_tokens(SAME, with_tokens({100: "<unused7>"})).shared[100]


def test_other_ends_of_text_are_mentioned() -> None:
    other = bpe_metadata(eos_token_id=SAME.special["bos"])
    fit = compare_vocabularies(SAME, vocabulary(other))
    assert fit.fits
    assert "'<|im_end|>'" in fit.reason


def test_the_fixtures_check_by_their_metadata(fixtures_dir: Path) -> None:
    tiny, vocabularies = fixtures_dir / "tiny_models", fixtures_dir / "tokenizers"
    assert check_draft(tiny / "llama.gguf", tiny / "llama-q4_k_m.gguf").fits
    fit = check_draft(tiny / "llama.gguf", tiny / "qwen2.gguf")
    assert not fit.fits
    assert "'gpt2'" in fit.reason
    fit = check_draft(tiny / "llama.gguf", vocabularies / "ggml-vocab-llama-spm.gguf")
    assert not fit.fits
    assert "no weights" in fit.reason
    with pytest.raises(ModelFileError):
        check_draft(tiny / "llama.gguf", tiny / "nothing.gguf")
