"""From ids to text: whole, and token by token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TokenizerError
from engine.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import bpe_metadata, sentencepiece_metadata, tokenizer_of

BPE = tokenizer_of(bpe_metadata())
SENTENCEPIECE = tokenizer_of(sentencepiece_metadata())


@given(st.sampled_from([BPE, SENTENCEPIECE]), st.data(), st.booleans())
def test_a_stream_says_what_the_whole_says(tokenizer: Tokenizer, data: Any, keep_special: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=40))
    stream = tokenizer.stream_decoder(keep_special=keep_special)
    parts = [stream.push(token) for token in ids] + [stream.flush()]
    assert "".join(parts) == tokenizer.decode_bytes(ids, keep_special=keep_special).decode("utf-8", "replace")


@given(st.text())
def test_a_stream_never_shows_part_of_a_character(text: str) -> None:
    stream = BPE.stream_decoder()
    parts = [stream.push(token) for token in BPE.encode(text)]
    assert "".join(parts) == text  # nothing left for flush, and no U+FFFD on the way
    assert stream.flush() == ""


def test_a_character_comes_out_with_its_last_byte() -> None:
    stream = BPE.stream_decoder()
    assert [stream.push(token) for token in BPE.encode("é")] == ["", "é"]
    first_half = BPE.encode("é")[0]
    assert stream.push(first_half) == ""
    assert stream.flush() == "\ufffd"


def test_control_tokens_can_be_left_out() -> None:
    ids = BPE.encode("hello<|im_end|>", parse_special=True)
    assert BPE.decode(ids) == "hello<|im_end|>"
    assert BPE.decode(ids, keep_special=False) == "hello"
    stream = BPE.stream_decoder(keep_special=False)
    assert "".join(map(stream.push, ids)) == "hello"


def test_the_space_that_encoding_puts_first_is_taken_away_again() -> None:
    ids = SENTENCEPIECE.encode("hello", add_special=False)
    assert SENTENCEPIECE.decode_bytes(ids) == b" hello"
    assert SENTENCEPIECE.decode(ids) == "hello"


def test_spaces_before_punctuation_go_where_the_vocabulary_wants_it() -> None:
    text = "hello , it 's ' x ' ?"
    cleaning, keeping = tokenizer_of(bpe_metadata("gpt-2")), tokenizer_of(bpe_metadata("smollm"))
    assert cleaning.decode(cleaning.encode(text)) == "hello, it's'x '?"
    assert keeping.decode(keeping.encode(text)) == text


def test_bytes_of_byte_tokens() -> None:
    token = SENTENCEPIECE.encode("\n", add_special=False)[-1]
    assert SENTENCEPIECE.token_text(token) == "<0x0A>"
    assert SENTENCEPIECE.token_bytes(token) == b"\n"
    with pytest.raises(TokenizerError):
        SENTENCEPIECE.token_bytes(SENTENCEPIECE.n_vocab)
