"""Guessing with real executors and files: greedy answers are token for token those without guesses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.api import (
    AdapterUse,
    DraftKind,
    DraftOptions,
    EngineState,
    Failed,
    GenerateRequest,
    LoadOptions,
    SamplingParams,
    Token,
)
from engine.devices import list_devices
from engine.engine import Engine
from engine.errors import ModelFileError, RequestError
from engine.gguf import GGUFFile
from engine.quantize import plan_quantisation, quantize_file
from engine.stream import Stream
from tests.adapters.writer import MODULES, write_peft
from tests.drafts.predicting_files import check_guesses

NGRAM, MODEL = DraftOptions(DraftKind.NGRAM), DraftOptions(DraftKind.MODEL)
GREEDY = SamplingParams(temperature=0)
DEVICES = ["numpy", *(["opencl"] if any(d.id.startswith("opencl") and not d.problem for d in list_devices()) else [])]

TINY = [
    "command-r", "deepseek2", "gemma", "gemma2", "gemma2-q6_k", "gemma3", "glm4", "gpt-oss", "lfm2", "llama",
    "llama-q4_k_m", "llama-yarn", "llama3-ropescale", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3-iq4_xs", "qwen3moe",
    "smollm3", "starcoder2", "starcoder2-q8_0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def guesses_are_checked_whether_they_pay_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models are too small for guessing to pay, and what is asked here is whether it is right."""
    check_guesses(monkeypatch, 6)


def submit(engine: Engine, tokens: list[int], n: int, draft: DraftOptions | None) -> Stream:
    return engine.submit(
        GenerateRequest(prompt_tokens=tokens, max_tokens=n, sampling=GREEDY, ignore_eos=True, draft=draft)
    )


def finish(stream: Stream) -> tuple[list[int], int, int]:
    """The tokens, and how many guesses were checked and accepted."""
    events = list(stream)
    last = events[-1]
    if isinstance(last, Failed):
        raise last.error
    assert not isinstance(last, Token)
    tokens = [event.token for event in events if isinstance(event, Token)]
    return tokens, last.figures.drafted_tokens, last.figures.accepted_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY)
def test_tiny_models_answer_the_same_with_ngrams(fixtures_dir: Path, name: str, device: str) -> None:
    folder = fixtures_dir / "tiny_models"
    prompt = np.load(folder / f"{name}.npz")["prompt"].tolist()
    prompt = [*prompt[:20], *prompt[:20], *prompt[:9]]  # so that there is something to guess from the first token on
    with Engine() as engine:
        engine.load(folder / f"{name}.gguf", LoadOptions(device=device, context_length=256)).result(120)
        plain, *_ = finish(submit(engine, prompt, 40, None))
        guessed, drafted, _ = finish(submit(engine, prompt, 40, NGRAM))
        assert guessed == plain
        if name == "llama":
            assert drafted > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_tiny_model_answers_the_same_with_a_draft_and_in_a_crowd(fixtures_dir: Path, device: str) -> None:
    folder = fixtures_dir / "tiny_models"
    prompt = np.load(folder / "llama.npz")["prompt"].tolist()
    with Engine() as engine:
        options = LoadOptions(device=device, context_length=256)
        engine.load(folder / "llama.gguf", options).result(120)
        engine.load_draft(folder / "llama-q4_k_m.gguf", options).result(120)
        prompts = [prompt[i : i + 12] for i in range(0, 36, 9)]
        plain = [finish(submit(engine, tokens, 30, None))[0] for tokens in prompts]
        streams = [submit(engine, tokens, 30, draft) for tokens in prompts for draft in (MODEL, NGRAM)]
        answers = [finish(stream) for stream in streams]
        for index, (tokens, _, _) in enumerate(answers):
            assert tokens == plain[index // 2]
        assert sum(accepted for _, _, accepted in answers) > 10


@pytest.mark.parametrize("device", DEVICES)
def test_guesses_keep_to_a_grammar(fixtures_dir: Path, device: str) -> None:
    """With one, too, the answer is the one without guesses; all of it is of the form."""
    folder = fixtures_dir / "tiny_models"
    prompt = np.load(folder / "llama.npz")["prompt"].tolist()[:12]
    with Engine() as engine:
        options = LoadOptions(device=device, context_length=256)
        engine.load(folder / "llama.gguf", options).result(120)
        engine.load_draft(folder / "llama-q4_k_m.gguf", options).result(120)
        answers = []
        for draft in (None, MODEL, NGRAM):
            stream = engine.submit(
                GenerateRequest(
                    prompt_tokens=prompt,
                    max_tokens=40,
                    sampling=GREEDY,
                    grammar="root ::= ([a-z]+ [0-9])+",
                    draft=draft,
                )
            )
            events = list(stream)
            assert not any(isinstance(event, Failed) for event in events)
            answers.append("".join(event.text for event in events if isinstance(event, Token)))
        assert answers[1:] == answers[:1] * 2
        assert re.match(r"[a-z]+([0-9][a-z]*)*$", answers[0])


@pytest.mark.parametrize("device", ["numpy=1,opencl", "opencl=1,numpy"])
def test_a_divided_model_with_adapters_answers_the_same_with_guesses(
    fixtures_dir: Path, tmp_path: Path, device: str
) -> None:
    """The draft stays whole, on the first of the two devices; the adapter changes what is guessed at."""
    folder = fixtures_dir / "tiny_models"
    prompt = np.load(folder / "llama.npz")["prompt"].tolist()[:12]
    uses = (AdapterUse(write_peft(tmp_path / "adapter", MODULES, size=2.0), 0.8),)
    with Engine() as engine:
        options = LoadOptions(device=device, context_length=256)
        engine.load(folder / "llama.gguf", options).result(120)
        draft = engine.load_draft(folder / "llama-q4_k_m.gguf", options).result(120)
        assert draft.device.id.startswith(device[:5])
        assert "=" not in draft.device.id
        answers = []
        for guesses in (None, MODEL, NGRAM):
            request = GenerateRequest(
                prompt_tokens=prompt, max_tokens=30, sampling=GREEDY, ignore_eos=True, draft=guesses, adapters=uses
            )
            answers.append(finish(engine.submit(request))[0])
        assert answers[1:] == answers[:1] * 2
        assert answers[0] != finish(submit(engine, prompt, 30, None))[0]


# -- the engine


@pytest.fixture
def engine(fixtures_dir: Path) -> Iterator[Engine]:
    with Engine() as engine:
        engine.load(fixtures_dir / "tiny_models" / "llama.gguf", LoadOptions(device="numpy")).result(60)
        yield engine


def test_a_draft_comes_and_goes(engine: Engine, fixtures_dir: Path) -> None:
    folder = fixtures_dir / "tiny_models"
    with pytest.raises(RequestError, match="none is loaded"):
        finish(submit(engine, [1, 2, 3], 4, MODEL))
    info = engine.load_draft(folder / "llama-q4_k_m.gguf", LoadOptions(device="numpy")).result(60)
    assert engine.status().draft == info
    assert engine.status().state is EngineState.READY
    assert info.path == folder / "llama-q4_k_m.gguf"
    assert info.weight_bytes > 0
    assert info.kv_bytes > 0
    finish(submit(engine, [1, 2, 3], 20, MODEL))
    engine.unload_draft().result(60)
    assert engine.status().draft is None
    with pytest.raises(RequestError, match="none is loaded"):
        finish(submit(engine, [1, 2, 3], 4, MODEL))


def test_a_draft_that_does_not_fit_leaves_the_one_that_does(engine: Engine, fixtures_dir: Path) -> None:
    folder = fixtures_dir / "tiny_models"
    info = engine.load_draft(folder / "llama-q4_k_m.gguf", LoadOptions(device="numpy")).result(60)
    with pytest.raises(RequestError, match=r"qwen2\.gguf cannot draft for .*'gpt2'"):
        engine.load_draft(folder / "qwen2.gguf").result(60)
    with pytest.raises(ModelFileError):
        engine.load_draft(folder / "nothing.gguf").result(60)
    assert engine.status().draft == info


def test_another_model_keeps_the_draft_if_it_fits_and_drops_it_with_a_note_if_not(
    engine: Engine, fixtures_dir: Path
) -> None:
    folder, options = fixtures_dir / "tiny_models", LoadOptions(device="numpy")
    draft = engine.load_draft(folder / "llama-q4_k_m.gguf", options).result(60)
    engine.load(folder / "llama-yarn.gguf", options).result(60)
    assert engine.status().draft == draft
    finish(submit(engine, [1, 2, 3], 20, MODEL))
    info = engine.load(folder / "qwen2.gguf", options).result(60)
    assert engine.status().draft is None
    assert any("does not fit this model and was unloaded" in note for note in info.notes)
    assert engine.status().model == info


def test_options_of_guessing_are_checked(engine: Engine) -> None:
    for options in (
        DraftOptions(DraftKind.NGRAM, draft_k=0),
        DraftOptions(DraftKind.NGRAM, max_draft_tokens=65),
        DraftOptions(DraftKind.NGRAM, min_probability=1.5),
    ):
        with pytest.raises(RequestError, match="draft_k|max_draft_tokens|min_probability"):
            finish(submit(engine, [1, 2, 3], 4, options))


# -- the starter model


@pytest.fixture(scope="module")
def low_bit_copy(starter_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("draft") / "q4_0.gguf"
    with GGUFFile.open(starter_model) as file:
        quantize_file(file, plan_quantisation(file, "Q4_0"), out)
    return out


@pytest.mark.skipif("opencl" not in DEVICES, reason="there is no OpenCL device")
def test_the_starter_model_answers_the_same_with_ngrams_and_with_a_low_bit_copy(
    starter_model: Path, low_bit_copy: Path
) -> None:
    options = LoadOptions(device="opencl", context_length=512)
    text = "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return"
    with Engine() as engine:
        engine.load(starter_model, options).result(120)
        engine.load_draft(low_bit_copy, options).result(120)
        prompt = engine.call(lambda _, tokenizer: tokenizer.encode(text), uses_kv=False).result(60)
        plain, *_ = finish(submit(engine, prompt, 48, None))
        for draft in (NGRAM, MODEL):
            guessed, drafted, accepted = finish(submit(engine, prompt, 48, draft))
            assert guessed == plain
            assert 5 < accepted <= drafted


@pytest.mark.slow
def test_stories15m_drafts_for_tinyllama(fixtures_dir: Path, models_dir: Path, tmp_path: Path) -> None:
    """Another model of the same vocabulary: few guesses are right, and the answer is the same."""
    from tests.tools.llama2c import convert

    target, checkpoint = models_dir / "tinyllama-1.1b-chat-v1.0.IQ2_XXS.gguf", models_dir / "stories15M.bin"
    for path in (target, checkpoint):
        if not path.exists():
            pytest.skip(f"{path.name} is not in {models_dir}")
    draft = tmp_path / "stories15M.gguf"
    convert(checkpoint, fixtures_dir / "tokenizers" / "ggml-vocab-llama-spm.gguf", draft)
    with Engine() as engine:
        engine.load(target, LoadOptions(context_length=512)).result(300)
        engine.load_draft(draft).result(120)
        prompt = engine.call(
            lambda _, tokenizer: tokenizer.encode("Once upon a time, there was a little girl named"), uses_kv=False
        ).result(60)
        plain, *_ = finish(submit(engine, prompt, 64, None))
        guessed, drafted, accepted = finish(submit(engine, prompt, 64, MODEL))
        assert guessed == plain
        assert 0 < accepted < drafted
