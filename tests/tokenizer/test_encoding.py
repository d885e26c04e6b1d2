"""What encoding promises beyond the published cases."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tokenizer import Tokenizer
from engine.tokenizer import merging as merging_module
from engine.tokenizer.pretokenizer import PRETOKENIZERS
from engine.tokenizer.special import SpecialTokens
from engine.tokenizer.vocabulary import read_vocabulary
from tests.tokenizer.vocabularies import (
    CONTROL_TEXTS,
    FakeFile,
    bpe_metadata,
    read_tokenizer,
    sentencepiece_metadata,
    tokenizer_of,
)

BPE = tokenizer_of(bpe_metadata())
SENTENCEPIECE = tokenizer_of(sentencepiece_metadata())
# SmolLM2 has no tokens for these bytes of UTF-8, and so no way to say them.
RARE_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
ANY_TEXT = (
    st.text() | st.text(alphabet="hello <|im_start>/s\n'") | st.lists(st.sampled_from(CONTROL_TEXTS)).map("".join)
)


@pytest.fixture(scope="module")
def starter_tokenizer(starter_model: Path) -> Tokenizer:
    return read_tokenizer(starter_model)


@given(ANY_TEXT)
def test_byte_level_bpe_round_trips(text: str) -> None:
    assert BPE.decode_bytes(BPE.encode(text)).decode() == text


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT.filter(lambda text: not RARE_BYTES & set(text.encode())))
def test_the_starter_model_round_trips(starter_tokenizer: Tokenizer, text: str) -> None:
    assert starter_tokenizer.decode(starter_tokenizer.encode(text)) == text


@given(ANY_TEXT)
def test_sentencepiece_round_trips(text: str) -> None:
    # U+2581 is how this kind of vocabulary writes a space; the two cannot be told apart.
    assert SENTENCEPIECE.decode(SENTENCEPIECE.encode(text, add_special=False)) == text.replace("▁", " ")


@given(st.sampled_from([BPE, SENTENCEPIECE]), ANY_TEXT)
def test_plain_text_never_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    # The small SentencePiece vocabulary has "<s" and ">", which could merge into "<s>".
    assert not any(map(tokenizer.is_control, tokenizer.encode(text, add_special=False)))


@given(
    st.text(alphabet="ab <>|", max_size=60), st.dictionaries(st.text("ab|", min_size=1, max_size=4), st.integers(0, 9))
)
def test_both_ways_of_merging_agree(text: str, ranks: dict[str, int]) -> None:
    short = merging_module._merge_short(list(text), ranks, "")
    assert merging_module._merge_long(text, ranks, "") == short
    assert "".join(short) == text


def test_sentencepiece_merges_the_leftmost_among_equals() -> None:
    assert merging_module.merge("aaaa" + "b", {"aa": 0, "aaa": 1}, "") == ["aa", "aa", "b"]
    assert merging_module.merge("a" * 5, {"aa": 0}, "") == ["aa", "aa", "a"]


@settings(deadline=None)
@given(st.sampled_from(sorted(PRETOKENIZERS)), st.text() | st.text(alphabet="aB1 \n\r'~.é字\u2003"))
def test_pieces_of_a_text_are_the_text(name: str, text: str) -> None:
    words = PRETOKENIZERS[name].split(text)
    assert "".join(words) == text
    assert "" not in words


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'm  2023 años!", ["I", "'m", " ", " 2023", " años", "!"]),
        ("smollm", "in 2023", ["in", " ", "2", "0", "2", "3"]),
        ("llama-bpe", "12345 I'LL\n\n x", ["123", "45", " I", "'LL", "\n\n", " x"]),
        ("qwen2", "12 ab\u00a0cd", ["1", "2", " ab", "\u00a0cd"]),
        ("tekken", "camelCaseWord X1", ["camel", "Case", "Word", " X", "1"]),
        ("gpt-4o", "Don't 1234", ["Don't", " ", "123", "4"]),
        ("deepseek-v3", "foo(bar) 東京x", ["foo", "(bar", ")", " ", "東京", "x"]),
        ("afmoe", "12345678", ["12", "345", "678"]),
        ("command-r", "a 10", ["a", " ", "1", "0"]),
        ("default", "x+=1 [2]", ["x", "+=", "1", " ", "[", "2", "]"]),
    ],
)
def test_pre_tokenizers_cut_as_published(pre: str, text: str, words: list[str]) -> None:
    assert PRETOKENIZERS[pre].split(text) == words


def special_tokens(texts: list[str]) -> SpecialTokens:
    tokens = ["a", *texts]
    vocabulary = read_vocabulary(FakeFile(bpe_metadata(tokens=tokens, token_type=None, merges=[])))
    return SpecialTokens(vocabulary, range(1, len(tokens)))


@given(st.lists(st.text("xyz<", min_size=1, max_size=4), unique=True, max_size=6), st.text("xyz< "))
def test_special_tokens_go_longest_first(texts: list[str], text: str) -> None:
    # Among tokens of one length the reference leaves the order open; with one per length it is fixed.
    texts = list({len(special): special for special in texts}.values())
    special = special_tokens(texts)
    assert special.split(text) == special._split_by_length(text)


def test_a_longer_special_token_wins_over_one_that_begins_before_it() -> None:
    special = special_tokens(["xy", "yzz"])
    assert special.split("axyzzb") == ["ax", 2, "b"]
    assert special.split("axyb") == ["a", 1, "b"]


def test_special_tokens_take_the_white_space_that_belongs_to_them() -> None:
    metadata = bpe_metadata()
    metadata["general.name"] = "Phi-3 mini"
    tokenizer = tokenizer_of(metadata)
    ids = tokenizer.encode("a <|im_end|> \n b", parse_special=True)
    assert tokenizer.decode(ids) == "a <|im_end|>b"


def test_user_defined_tokens_are_found_and_control_tokens_only_when_asked() -> None:
    text = "a<think>b<|im_end|>"
    plain, parsed = BPE.encode(text), BPE.encode(text, parse_special=True)
    assert "<think>" in map(BPE.token_text, plain)
    assert "<|im_end|>" not in map(BPE.token_text, plain)
    assert BPE.token_text(parsed[-1]) == "<|im_end|>"


def test_bos_and_eos_are_added_as_the_model_asks() -> None:
    both = tokenizer_of(bpe_metadata(add_bos_token=True, add_eos_token=True))
    assert both.encode("") == [both.bos, both.eos]
    assert both.encode("", add_special=False) == []
    assert SENTENCEPIECE.encode("hello") == [1, SENTENCEPIECE.encode("hello", add_special=False)[0]]


def test_lone_surrogates_do_not_break_encoding() -> None:
    assert BPE.decode(BPE.encode("a\ud800b\udcff")) == "a\ufffdb\ufffd"
    assert SENTENCEPIECE.decode_bytes(SENTENCEPIECE.encode("\udcff", add_special=False)) == b" \xff"


@pytest.mark.parametrize(
    "text", ["a" * 200_000, " " * 200_000, "\n" * 200_000, "<|" * 100_000, "1" * 200_000, "é" * 100_000]
)
def test_monotonous_text_takes_no_more_than_a_moment(starter_tokenizer: Tokenizer, text: str) -> None:
    start = time.perf_counter()
    ids = starter_tokenizer.encode(text, parse_special=True)
    assert starter_tokenizer.decode(ids) == text
    assert time.perf_counter() - start < 10  # it takes half a second; quadratic work would take minutes


def test_many_special_tokens_are_found_in_one_pass() -> None:
    texts = [f"<unused{i}>" for i in range(5000)]
    special = special_tokens(texts)
    start = time.perf_counter()
    assert special.split("<unused77>x" * 20_000)[:2] == [78, "x"]
    assert time.perf_counter() - start < 5
