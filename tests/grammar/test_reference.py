"""Masks against llama.cpp's: the tokens that its grammar sampler left, along texts of JSON (llama-cpp-python 0.3.36).

Left out are control tokens, which llama.cpp takes for their text, and bytes that UTF-8 never uses, which it lets pass.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.gguf import GGUFFile
from engine.grammar import CompiledGrammar
from engine.tokenizer import Tokenizer

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text())


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{case['vocabulary']}-{len(case['tokens'])}")
def test_the_same_tokens_are_allowed_at_every_step(case: dict[str, Any], fixtures_dir: Path) -> None:
    file = fixtures_dir / "tokenizers" / f"ggml-vocab-{case['vocabulary']}.gguf"
    tokenizer = Tokenizer.from_gguf(GGUFFile(file))
    n = tokenizer.n_vocab
    constraint = CompiledGrammar(case["grammar"], tokenizer, n).start()
    for token, (count, checksum) in zip([*case["tokens"], None], case["allowed"], strict=True):
        allowed = constraint.allowed()
        ids = np.delete(np.arange(n), allowed.banned) if allowed.banned is not None else allowed.ids
        assert ids is not None
        assert (len(ids), zlib.crc32(ids.astype(np.int32).tobytes())) == (count, checksum)
        if token is not None:
            constraint.accept(token)
