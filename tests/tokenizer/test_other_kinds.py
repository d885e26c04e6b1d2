"""WordPiece and unigram vocabularies, which embedding models and T5 have."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from engine.errors import TokenizerError
from tests.tokenizer.vocabularies import CONTROL, NORMAL, UNKNOWN, FakeFile, read_tokenizer, tokenizer_of


def wordpiece() -> FakeFile:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "aff", "able", "▁hello", "▁,", "▁中", "▁cafe"]
    return FakeFile(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array([CONTROL, UNKNOWN, CONTROL, CONTROL, *[NORMAL] * 7], dtype=np.int32),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
            "tokenizer.ggml.unknown_token_id": 1,
        }
    )


def test_wordpiece_takes_the_longest_pieces_of_normalised_words() -> None:
    tokenizer = tokenizer_of(wordpiece().metadata)
    assert tokenizer.encode("Hello, UNaffable\t中中 café xyz") == [2, 7, 8, 4, 5, 6, 9, 9, 10, 1, 3]
    assert tokenizer.encode("hello", add_special=False) == [7]


def unigram(**more: object) -> dict[str, object]:
    pieces = {
        "<pad>": 0.0,
        "</s>": 0.0,
        "<unk>": 0.0,
        "▁": -2.0,
        "▁a": -3.0,
        "b": -4.0,
        "▁ab": -8.0,
        "abc": -5.0,
        "c": -6.0,
    }
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.scores": np.array(list(pieces.values()), dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([CONTROL, CONTROL, UNKNOWN, *[NORMAL] * 6], dtype=np.int32),
        "tokenizer.ggml.add_space_prefix": True,
        **more,
    }


def test_unigram_finds_the_best_sum_of_scores() -> None:
    tokenizer = tokenizer_of(unigram())
    texts = [tokenizer.token_text(token) for token in tokenizer.encode("ab abc zz c")]
    # "▁a"+"b" = -7 beats "▁ab" = -8; "▁"+"abc" = -7 beats the rest; unknown characters become one token.
    assert texts == ["▁a", "b", "▁", "abc", "▁", "<unk>", "▁", "c", "</s>"]


@pytest.mark.parametrize("blob", [b"\0", b"\xff\xff\xff\xff1234", struct.pack("<I", 6) + bytes(20)])
def test_a_damaged_normalisation_table_is_named(blob: bytes) -> None:
    with pytest.raises(TokenizerError, match="precompiled_charsmap"):
        tokenizer_of(unigram(**{"tokenizer.ggml.precompiled_charsmap": np.frombuffer(blob, dtype=np.uint8)}))


def test_wordpiece_of_a_real_model(models_dir: Path) -> None:
    path = models_dir / "nomic-embed-text-v1.5.f16.gguf"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the models")
    tokenizer = read_tokenizer(path)
    ids = tokenizer.encode("Hello World!")
    assert [tokenizer.token_text(token) for token in ids] == ["[CLS]", "▁hello", "▁world", "▁!", "[SEP]"]
    cases = json.loads(Path(__file__).with_name("wordpiece_cases.json").read_text(encoding="utf-8"))
    for case in cases:  # the reference's ids
        text = case["text"]
        assert tokenizer.encode(text, add_special=False) == case["ids"], ascii(text)
        special = tokenizer.encode(text, add_special=False, parse_special=True)
        assert special == case.get("ids_special", case["ids"]), ascii(text)
    assert len(cases) > 200
