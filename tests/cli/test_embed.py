"""`realm embed`: vectors of the tiny model, and what is said of encoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.gguf.builder import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, Array, Model, Tensor

from .conftest import Realm

WIDTH, WORDS = 16, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁world", "▁,"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nomic-bert of one layer with random weights."""
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> Tensor:
        values = random.standard_normal(shape).astype(np.float32)
        return Tensor(name, list(shape[::-1]), data=values.tobytes())

    b = "blk.0"
    path = tmp_path_factory.mktemp("models") / "encoder.gguf"
    path.write_bytes(
        bytes(
            Model(
                keys={
                    "general.architecture": (STRING, "nomic-bert"),
                    "general.name": (STRING, "small encoder"),
                    "nomic-bert.context_length": (UINT32, 32),
                    "nomic-bert.embedding_length": (UINT32, WIDTH),
                    "nomic-bert.block_count": (UINT32, 1),
                    "nomic-bert.feed_forward_length": (UINT32, 32),
                    "nomic-bert.attention.head_count": (UINT32, 2),
                    "nomic-bert.attention.layer_norm_epsilon": (FLOAT32, 1e-12),
                    "nomic-bert.attention.causal": (BOOL, False),
                    "nomic-bert.pooling_type": (UINT32, 2),
                    "tokenizer.ggml.model": (STRING, "bert"),
                    "tokenizer.ggml.tokens": (ARRAY, Array(STRING, list(WORDS))),
                    "tokenizer.ggml.token_type": (ARRAY, Array(INT32, [3, 2, 3, 3, 1, 1, 1])),
                    "tokenizer.ggml.bos_token_id": (UINT32, 2),
                    "tokenizer.ggml.unknown_token_id": (UINT32, 1),
                    "tokenizer.ggml.seperator_token_id": (UINT32, 3),
                },
                tensors=[
                    tensor("token_embd.weight", len(WORDS), WIDTH),
                    tensor("token_types.weight", 2, WIDTH),
                    tensor("token_embd_norm.weight", WIDTH),
                    tensor(f"{b}.attn_qkv.weight", 3 * WIDTH, WIDTH),
                    tensor(f"{b}.attn_output.weight", WIDTH, WIDTH),
                    tensor(f"{b}.attn_output_norm.weight", WIDTH),
                    tensor(f"{b}.ffn_gate.weight", 32, WIDTH),
                    tensor(f"{b}.ffn_up.weight", 32, WIDTH),
                    tensor(f"{b}.ffn_down.weight", WIDTH, 32),
                    tensor(f"{b}.layer_output_norm.weight", WIDTH),
                ],
            )
        )
    )
    return path


def test_vectors_as_json_and_as_lines(realm: Realm, encoder: Path) -> None:
    command = ("embed", encoder, "--device", "numpy")
    answer = realm(*command, "hello, world", "world", "--json").json
    vectors = np.array(answer.pop("embeddings"))
    assert answer == {"tokens": [5, 3], "pooling": "cls", "normalised": True, "truncated": []}
    assert vectors.shape == (2, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)

    plain = realm(*command, "-", stdin="hello, world\n\nworld\n")
    assert plain.code == 0
    lines = [[float(number) for number in line.split(" ")] for line in plain.out.splitlines()]
    np.testing.assert_allclose(lines, vectors, rtol=1e-6)

    each = realm(*command, "hello, world", "world", "--json", "--pooling", "none", "--no-normalise").json
    assert [np.shape(tokens) for tokens in each["embeddings"]] == [(5, WIDTH), (3, WIDTH)]
    first = np.array(each["embeddings"][0][0])
    np.testing.assert_allclose(first / np.linalg.norm(first), vectors[0], rtol=1e-5)


def test_comparing(realm: Realm, encoder: Path) -> None:
    command = ("embed", encoder, "--device", "numpy", "hello", "world", "hello", "--compare")
    cosines = np.array(realm(*command, "--json").json["cosines"])
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-6)
    assert cosines[0, 2] == pytest.approx(1)
    assert cosines[0, 1] == cosines[1, 0] < 0.999
    assert f"{cosines[0, 1]:.4f}" in realm(*command).out
    assert "one vector for each text" in realm(*command, "--pooling", "none").error


def test_what_is_too_long_is_refused_or_cut(realm: Realm, encoder: Path) -> None:
    command = ("embed", encoder, "--device", "numpy", "hello " * 50)
    assert "Text 1 has 52 tokens, but small encoder is loaded for 32" in realm(*command).error
    cut = realm(*command, "--truncate", "--json")
    assert cut.json["tokens"] == [32]
    assert "text 1 was cut to 32 tokens" in cut.err


def test_no_text(realm: Realm, encoder: Path) -> None:
    assert "no text to embed" in realm("embed", encoder, "-", stdin="\n").error


def test_an_encoder_says_that_it_cannot_chat(realm: Realm, encoder: Path, tmp_path: Path) -> None:
    info = realm("info", encoder)
    assert "cannot chat" in info.out
    assert "cls" in info.out
    facts = realm("info", encoder, "--json").json
    assert (facts["is_encoder"], facts["pooling"]) == (True, "cls")
    on = ("--device", "numpy")
    says = "small encoder is an encoder: it turns texts into vectors and cannot chat"
    assert says in realm("run", encoder, "hello", *on).error
    assert says in realm("chat", "--model", encoder, *on).error
    assert says in realm("generate", "--model", encoder, "--prompt", "hello", *on).error
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 20)
    assert says in realm("perplexity", "--model", encoder, "--file", text, "--context", 16, *on).error
    assert says in realm("bench", "--model", encoder, *on).err
    assert says in realm("logits", "--model", encoder, "--tokens", "4", "--out", tmp_path / "o.npy", *on).error


def test_a_chat_model_gives_vectors_too(realm: Realm, tiny_model: Path) -> None:
    assert realm("info", tiny_model, "--json").json["is_encoder"] is False
    answer = realm("embed", tiny_model, "hello", "--device", "numpy", "--json").json
    assert answer["pooling"] == "mean"
    assert np.isfinite(json.loads(json.dumps(answer["embeddings"]))).all()
