"""What the tokenizer keys mean, and what happens when they are damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.errors import TokenizerError, UnsupportedModelError
from tests.tokenizer.vocabularies import bpe_metadata, sentencepiece_metadata, tokenizer_of


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": None}, "tokenizer.ggml.model"),
        ({"model": 3}, "tokenizer.ggml.model"),
        ({"tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokens": "hello"}, "tokenizer.ggml.tokens"),
        ({"tokens": np.arange(10)}, "tokenizer.ggml.tokens"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"merges": np.arange(10)}, "tokenizer.ggml.merges"),
        ({"token_type": np.ones(3, dtype=np.int32)}, "tokenizer.ggml.token_type"),
        ({"token_type": np.ones(269, dtype=np.float32)}, "tokenizer.ggml.token_type"),
        ({"token_type": ["a"]}, "tokenizer.ggml.token_type"),
        ({"scores": np.zeros(3, dtype=np.float32)}, "tokenizer.ggml.scores"),
        ({"scores": "none"}, "tokenizer.ggml.scores"),
        ({"pre": 1}, "tokenizer.ggml.pre"),
        ({"bos_token_id": "<s>"}, "tokenizer.ggml.bos_token_id"),
        ({"bos_token_id": True}, "tokenizer.ggml.bos_token_id"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token"),
    ],
)
def test_damaged_keys_are_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(TokenizerError, match=key.replace(".", r"\.")):
        tokenizer_of(bpe_metadata(**changes))


def test_scores_are_needed_where_they_decide() -> None:
    with pytest.raises(TokenizerError, match="scores is missing"):
        tokenizer_of(sentencepiece_metadata(scores=None))


def test_an_unknown_kind_is_unsupported_not_damaged() -> None:
    with pytest.raises(UnsupportedModelError, match="'morse'"):
        tokenizer_of(bpe_metadata(model="morse"))


def test_special_ids_outside_of_the_vocabulary_are_ignored_with_a_warning() -> None:
    tokenizer = tokenizer_of(sentencepiece_metadata(bos_token_id=999_999, add_bos_token=True))
    assert tokenizer.bos == 1  # the default of this kind
    assert any("bos_token_id = 999999" in warning for warning in tokenizer.warnings)


def test_a_bos_that_does_not_exist_is_not_added() -> None:
    tokenizer = tokenizer_of(bpe_metadata(bos_token_id=None, add_bos_token=True, tokens=["a", "b"], token_type=None))
    assert not tokenizer.add_bos
    assert tokenizer.encode("ab") == [0, 1]
    assert any("add_bos_token" in warning for warning in tokenizer.warnings)


def test_an_unknown_pre_tokenizer_warns() -> None:
    tokenizer = tokenizer_of(bpe_metadata(pre="next-year"))
    assert any("next-year" in warning for warning in tokenizer.warnings)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_merges_of_tokens_that_do_not_exist_are_harmless() -> None:
    tokenizer = tokenizer_of(bpe_metadata(merges=["h e", "zzz qqq", "z z", "", "alone"]))
    text = "hezz zzzqqq"
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_tokens_with_the_same_text_warn_and_the_first_counts() -> None:
    metadata = bpe_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "hello"]
    tokenizer = tokenizer_of(bpe_metadata(tokens=tokens, token_type=None))
    assert tokenizer.encode("hello") == [tokens.index("hello")]
    assert any("text of another token" in warning for warning in tokenizer.warnings)


def test_a_token_that_is_not_utf8_keeps_its_bytes() -> None:
    tokens = [*sentencepiece_metadata()["tokenizer.ggml.tokens"][:-1], b"\xff\xfe".decode("utf-8", "surrogateescape")]
    tokenizer = tokenizer_of(sentencepiece_metadata(tokens=tokens))
    assert tokenizer.token_bytes(len(tokens) - 1) == b"\xff\xfe"
    assert tokenizer.decode([len(tokens) - 1]) == "\ufffd\ufffd"


def test_ends_of_turn_are_known_by_their_text() -> None:
    metadata = bpe_metadata(eos_token_id=0)
    tokenizer = tokenizer_of(metadata)
    assert {tokenizer.token_text(token) for token in tokenizer.end_tokens} == {"Ā", "<|im_end|>"}


def test_an_end_of_a_message_does_not_end_the_turn_of_gpt_oss() -> None:
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"], "<|end|>", "<|return|>", "<|call|>", "<|start|>"]
    tokenizer = tokenizer_of(bpe_metadata(tokens=tokens, token_type=None, eos_token_id=tokens.index("<|return|>")))
    ends = {tokenizer.token_text(token) for token in tokenizer.end_tokens}
    assert {"<|return|>", "<|call|>"} <= ends
    assert "<|end|>" not in ends


@pytest.mark.parametrize("token", [-1, 10_000])
def test_ids_outside_of_the_vocabulary_are_refused(token: int) -> None:
    tokenizer = tokenizer_of(bpe_metadata())
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(TokenizerError, match=f"Token {token} is outside"):
            decode([token])
