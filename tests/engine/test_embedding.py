"""Embedding beside all else that an engine does, on a model whose hidden state tells what it was computed from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import GenerateRequest, ModelInfo, Pooling
from engine.batch import Batch
from engine.embedding import normalised
from engine.engine import Engine
from engine.errors import ContextFullError, DeviceError, RequestError
from engine.job import JobCancelled
from tests.engine.fakes import GREEDY, FakeBundle, FakeModel, FakeTokenizer, loader_of, lone_run
from tests.engine.generation import generate


class Tokenizer(FakeTokenizer):
    add_eos = False


@dataclasses.dataclass
class Bundle(FakeBundle):
    tokenizer: Any = dataclasses.field(default_factory=Tokenizer)
    encoder: bool = False
    pooling: str = ""

    @property
    def info(self) -> ModelInfo:
        return dataclasses.replace(super().info, is_encoder=self.encoder, pooling=self.pooling)


def engine_of(bundle: FakeBundle, tmp_path: Path) -> Engine:
    path = tmp_path / "fake.gguf"
    path.touch()
    engine = Engine(loader_of(bundle))
    engine.load(path).result(10)
    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_of(Bundle(FakeModel(n_blocks=8, max_rows=20)), tmp_path) as engine:
        yield engine


def hidden(text: str) -> np.ndarray[Any, Any]:
    tokens = list(text.encode())
    numbers = [sum(i * t for i, t in enumerate(tokens[: n + 1], 1)) for n in range(len(tokens))]
    return np.array([tokens, range(len(tokens)), numbers], np.float64).T


TEXTS = ["a", "what is said " * 9, "b" * 31, "", "and more", "c" * 64]
KEPT = [text for text in TEXTS if text]


@pytest.mark.parametrize("pooling", [None, *Pooling])
def test_pooling(engine: Engine, pooling: Pooling | None) -> None:
    """Texts of many lengths, some of them longer than a batch, in a cache that does not hold all of them at once."""
    got = engine.embed(KEPT, pooling, normalise=False).result(10)
    assert got.token_counts == tuple(len(text) for text in KEPT)
    assert got.pooling is (pooling or Pooling.MEAN)
    rows = [hidden(text) for text in KEPT]
    expected = {
        Pooling.MEAN: [row.mean(axis=0, keepdims=True) for row in rows],
        Pooling.CLS: [row[:1] for row in rows],
        Pooling.LAST: [row[-1:] for row in rows],
        Pooling.NONE: rows,
    }[got.pooling]
    np.testing.assert_allclose(got.vectors, np.concatenate(expected), rtol=1e-6)
    assert got.vectors.dtype == np.float32
    scaled = engine.embed(KEPT, pooling).result(10).vectors
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(scaled, normalised(got.vectors))


def test_the_files_pooling_counts_unless_another_is_asked_for(tmp_path: Path) -> None:
    with engine_of(Bundle(pooling="last"), tmp_path) as engine:
        assert engine.embed(["ab"], normalise=False).result(10).vectors[0, 1] == 1
        assert engine.embed(["ab"], Pooling.CLS, normalise=False).result(10).vectors[0, 1] == 0


def test_a_reranker_needs_a_pooling(tmp_path: Path) -> None:
    with engine_of(Bundle(pooling="rank"), tmp_path) as engine:
        with pytest.raises(RequestError, match="reranker"):
            engine.embed(["a"]).result(10)
        assert engine.embed(["a"], Pooling.CLS).result(10).vectors.shape == (1, 3)


def test_no_texts_and_empty_texts(engine: Engine) -> None:
    assert engine.embed([]).result(10).vectors.shape == (0, 3)
    with pytest.raises(RequestError, match="Text 2 has no tokens"):
        engine.embed(["a", ""]).result(10)


def test_too_long_texts_are_refused_or_cut(engine: Engine) -> None:
    long = "x" * 300
    with pytest.raises(ContextFullError, match="Text 2 has 300 tokens, but Fake is loaded for 256"):
        engine.embed(["a", long]).result(10)
    got = engine.embed(["a", long], Pooling.LAST, normalise=False, truncate=True).result(10)
    assert (got.token_counts, got.truncated) == ((1, 256), (1,))
    assert got.vectors[1, 1] == 255


def test_answers_beside_embeddings_are_those_of_a_lone_run(tmp_path: Path) -> None:
    """And the texts take a limited part of each step meanwhile."""
    model = FakeModel(n_blocks=64, max_rows=512)
    with engine_of(Bundle(model), tmp_path) as engine:
        prompt = list(b"a long story begins")
        stream = engine.submit(GenerateRequest(prompt_tokens=prompt, max_tokens=200, sampling=GREEDY, ignore_eos=True))
        events = iter(stream)
        next(events)
        jobs = [engine.embed(["word " * 200] * 3, Pooling.LAST, normalise=False) for _ in range(2)]
        tokens = [event.token for event in events if hasattr(event, "token")]
        assert tokens == lone_run(prompt, 200, ignore_eos=True)
        for job in jobs:
            np.testing.assert_allclose(job.result(10).vectors, np.repeat(hidden("word " * 200)[-1:], 3, axis=0))
        beside = [len(batch.tokens) for batch in model.batches if len(batch.tokens) > 1][1:]
        assert beside
        assert max(beside) <= 128


def test_embedding_survives_a_call_that_takes_the_whole_cache(tmp_path: Path) -> None:
    def slowly(batch: Batch) -> None:
        time.sleep(0.01)

    model = FakeModel(n_blocks=8, max_rows=20, before=slowly)
    with engine_of(Bundle(model), tmp_path) as engine:
        jobs = [engine.embed(["what is said " * 9, "c" * 90], p, normalise=False) for p in (Pooling.NONE, Pooling.MEAN)]
        while len(model.batches) < 3:
            time.sleep(0.001)
        garbage = np.full((8, 256), 255, np.uint8)
        engine.call(lambda model, _: model.write_blocks(range(8), garbage)).result(10)
        rows = [hidden("what is said " * 9), hidden("c" * 90)]
        np.testing.assert_allclose(jobs[0].result(10).vectors, np.concatenate(rows))
        np.testing.assert_allclose(jobs[1].result(10).vectors, [row.mean(axis=0) for row in rows], rtol=1e-6)
        request = GenerateRequest(prompt_tokens=[1], max_tokens=3, sampling=GREEDY, ignore_eos=True)
        assert generate(engine, request).tokens == lone_run([1], 3, ignore_eos=True)


def test_a_waiting_embedding_can_be_cancelled(tmp_path: Path) -> None:
    def slowly(batch: Batch) -> None:
        time.sleep(0.02)

    with engine_of(Bundle(FakeModel(n_blocks=8, max_rows=20, before=slowly)), tmp_path) as engine:
        job = engine.embed(["c" * 200] * 50)
        time.sleep(0.1)
        job.cancel()
        with pytest.raises(JobCancelled):
            job.result(10)
        assert engine.embed(["a"]).result(10).token_counts == (1,)


def test_unloading_ends_it(tmp_path: Path) -> None:
    def slowly(batch: Batch) -> None:
        time.sleep(0.02)

    with engine_of(Bundle(FakeModel(n_blocks=8, max_rows=20, before=slowly)), tmp_path) as engine:
        job = engine.embed(["c" * 200] * 50)
        engine.unload()
        with pytest.raises(RequestError, match="unloaded"):
            job.result(10)


def test_a_lost_device_ends_it(tmp_path: Path) -> None:
    def fail(batch: Batch) -> None:
        raise DeviceError("The device is gone.")

    with (
        engine_of(Bundle(FakeModel(before=fail)), tmp_path) as engine,
        pytest.raises(DeviceError, match="The device is gone"),
    ):
        engine.embed(["a"]).result(10)


def test_a_mistake_in_a_step_fails_the_job_and_nothing_else(tmp_path: Path) -> None:
    broken = [True]

    def fail(batch: Batch) -> None:
        if broken.pop() if broken else False:
            raise ZeroDivisionError

    with engine_of(Bundle(FakeModel(before=fail)), tmp_path) as engine:
        with pytest.raises(Exception, match="ZeroDivisionError"):
            engine.embed(["a"]).result(10)
        assert engine.embed(["a"]).result(10).token_counts == (1,)


def test_an_encoder_takes_texts_whole_and_does_not_chat(tmp_path: Path) -> None:
    model = FakeModel(n_blocks=16, max_rows=128)
    with engine_of(Bundle(model, encoder=True, pooling="cls", context_length=128), tmp_path) as engine:
        engine.embed(["a" * 100, "b" * 128, "c" * 27]).result(10)
        assert sorted(len(batch.tokens) for batch in model.batches) == [127, 128]
        assert all((batch.positions[batch.logit_rows] == 0).all() for batch in model.batches)
        with pytest.raises(ContextFullError, match="129 tokens, but Fake is loaded for 128"):
            engine.embed(["a" * 129]).result(10)
        with pytest.raises(RequestError, match="Fake is an encoder: it turns texts into vectors and cannot chat"):
            generate(engine, GenerateRequest(prompt="hello", sampling=GREEDY))
        with pytest.raises(RequestError, match="cannot chat"):
            engine.call(lambda model, _: None).result(10)


def test_it_needs_a_model() -> None:
    with Engine() as engine, pytest.raises(RequestError, match="No model is loaded"):
        engine.embed(["a"]).result(10)
    with pytest.raises(RequestError, match="closed"):
        engine.embed(["a"]).result(10)
