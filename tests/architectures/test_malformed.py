"""The damaged files of the reference data, opened as a load opens them: reader, architecture, tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.architectures import read_architecture
from engine.errors import RealmError
from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer

NAMED = {
    "arch_unknown": "nonesuch",
    "block_count_missing": r"llama\.block_count is missing",
    "block_count_zero": r"llama\.block_count is 0",
    "embedding_float": r"llama\.embedding_length must be an integer",
    "embedding_mismatch": r"token_embd\.weight.*\[\d+, 32\].*\[\d+, 64\]",
    "head_count_no_divide": r"llama\.attention\.head_count is 5.*no multiple",
    "head_count_kv_no_divide": r"llama\.attention\.head_count is 4.*no multiple of llama\.attention\.head_count_kv, 3",
    "context_zero": r"llama\.context_length is 0",
    "rope_dim_odd": r"llama\.rope\.dimension_count is 7, which is odd",
    "eps_missing": r"llama\.attention\.layer_norm_rms_epsilon is missing",
    "shape_transposed": r"blk\.0\.ffn_down\.weight",
    "tensor_name_utf8": r"lacks the tensor 'blk\.0\.ffn_down\.weight'",
    "tokens_missing": r"tokenizer\.ggml\.tokens is missing",
}
"""What the message has to say."""


@pytest.fixture(scope="module")
def malformed(fixtures_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = fixtures_dir / "malformed" / "make_malformed_visible.py"
    folder = tmp_path_factory.mktemp("malformed")
    subprocess.run([sys.executable, "-B", script, folder], check=True, capture_output=True, timeout=120)
    return folder


def _open(path: Path) -> None:
    file = GGUFFile.open(path)
    read_architecture(file)
    Tokenizer.from_gguf(file)


def test_every_file_as_its_manifest_says(malformed: Path) -> None:
    manifest = json.loads((malformed / "manifest.json").read_text())
    wrong = []
    for entry in manifest:
        try:
            _open(malformed / entry["file"])
            outcome = "accept"
        except RealmError:
            outcome = "reject"
        if entry["expect"] not in ("either", outcome):
            wrong.append(f"{entry['file']}: {outcome} instead of {entry['expect']} ({entry['description']})")
    assert len(manifest) == 49
    assert not wrong


@pytest.mark.parametrize("name", NAMED)
def test_the_message_names_the_trouble(malformed: Path, name: str) -> None:
    with pytest.raises(RealmError, match=NAMED[name]):
        _open(malformed / f"{name}.gguf")
