"""Forced text becomes the tokens that the vocabulary's tokenizer makes of it, whatever that puts before a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.gguf import GGUFFile
from engine.grammar import CompiledGrammar
from engine.tokenizer import Tokenizer

GRAMMAR = 'root ::= "{\\"temperature of the city\\": " [0-9]+ ", \\"été ✓ means\\": \\"" [a-z]+ "\\"}"'


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
def test_forced_text_is_cut_as_the_tokenizer_cuts_it(name: str, fixtures_dir: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(fixtures_dir / "tokenizers" / f"ggml-vocab-{name}.gguf"))
    constraint = CompiledGrammar(GRAMMAR, tokenizer, tokenizer.n_vocab).start()
    for text, then in (('{"temperature of the city": ', "12,"), (' "été ✓ means": "', "warm")):
        assert constraint.forced().decode() == text
        tokens = constraint.forced_tokens()
        assert len(tokens) >= 4
        spelled = tokenizer.decode_bytes(tokens).decode()
        assert text.startswith(spelled)
        assert len(text) - len(spelled) <= 4  # the last token is left to the model
        assert tokenizer.encode("\n" + text, add_special=False)[-1 - len(tokens) : -1] == tokens
        for token in tokens:
            assert constraint.permits(token)
            constraint.accept(token)
        constraint.read(text[len(spelled) :] + then)
    assert constraint.forced_tokens() == []
