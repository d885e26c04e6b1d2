"""Guessing with a layer of the model's own file: what it changes (nothing), and that it is told the right rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.api import (
    AdapterUse,
    ContextPolicy,
    DraftKind,
    DraftOptions,
    Failed,
    Finished,
    GenerateRequest,
    LoadOptions,
    SamplingParams,
    Token,
)
from engine.devices import list_devices
from engine.drafts.layer import LayerDrafter
from engine.engine import Engine
from engine.errors import RequestError
from engine.gguf import GGUFFile
from engine.stream import Stream
from engine.tokenizer.vocabulary import read_vocabulary
from tests.adapters.writer import write_gguf_adapter
from tests.drafts.predicting_files import LAYERS, check_every_guess, random_glm, rigged_glm, write

LAYER, NGRAM = DraftOptions(DraftKind.MODEL), DraftOptions(DraftKind.NGRAM)
GREEDY = SamplingParams(temperature=0)
DEVICES = ["numpy", *(["opencl"] if any(d.id.startswith("opencl") and not d.problem for d in list_devices()) else [])]


@pytest.fixture(autouse=True)
def guesses_are_checked_whether_they_pay_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    check_every_guess(monkeypatch)


@pytest.fixture(scope="module")
def vocabulary(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tiny_models" / "llama.gguf"


@pytest.fixture(scope="module")
def n_vocab(vocabulary: Path) -> int:
    with GGUFFile.open(vocabulary) as file:
        return len(read_vocabulary(file).tokens)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path, n_vocab: int) -> Path:
    return write(tmp_path_factory.mktemp("glm") / "random.gguf", vocabulary, random_glm(n_vocab, 64))


@pytest.fixture(params=DEVICES)
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Engine]]:
    """Loads a file and its layer."""
    with Engine() as engine:

        def load(path: Path, **options: int) -> Engine:
            load_options = LoadOptions(**{"device": request.param, "context_length": 512, **options})
            assert engine.load(path, load_options).result(120).predicts
            engine.load_draft(path, load_options).result(120)
            return engine

        yield load


def ask(tokens: list[int], n: int, draft: DraftOptions | None, **more: object) -> GenerateRequest:
    request = GenerateRequest(prompt_tokens=tokens, max_tokens=n, sampling=GREEDY, ignore_eos=True, draft=draft)
    return replace(request, **more)  # type: ignore[arg-type]


def finish(stream: Stream) -> tuple[list[int], int, int]:
    """The tokens, and how many guesses were checked and accepted."""
    events = list(stream)
    last = events[-1]
    if isinstance(last, Failed):
        raise last.error
    assert isinstance(last, Finished)
    tokens = [event.token for event in events if isinstance(event, Token)]
    return tokens, last.figures.drafted_tokens, last.figures.accepted_tokens


def drafter_of(engine: Engine) -> LayerDrafter:
    assert engine._serving is not None
    drafter = engine._serving.speculation.drafter(DraftKind.MODEL)
    assert isinstance(drafter, LayerDrafter)
    return drafter


@pytest.mark.parametrize("from_rows", [False, True])
def test_a_layer_that_knows_what_follows_has_every_guess_accepted(
    serve: Callable[[Path], Engine], tmp_path: Path, vocabulary: Path, n_vocab: int, from_rows: bool
) -> None:
    """Also where it sees the model's rows only, which holds only if each is that of its own position; and where it goes
    on from its own row."""
    tensors, following = rigged_glm(n_vocab, from_rows=from_rows)
    engine = serve(write(tmp_path / "rigged.gguf", vocabulary, tensors))
    prompts = [[5], [9, 3] * 40, list(range(20, 120))]
    streams = [engine.submit(ask(prompt, 60, LAYER)) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        tokens, drafted, accepted = finish(stream)
        last = prompt[-1]
        want = [last := int(following[last]) for _ in range(60)]
        assert tokens == want
        assert drafted == accepted > 30


def test_answers_are_those_without_guesses(serve: Callable[[Path], Engine], random_file: Path) -> None:
    """Several at once, over the borders of blocks, some of whose guesses are right, with others that guess nothing."""
    engine = serve(random_file)
    prompts = [[i + 1] * (1 + 45 * i) for i in range(4)]
    plain = [finish(engine.submit(ask(prompt, 50, None)))[0] for prompt in prompts]
    engine.call(lambda model, tokenizer: None).result(60)  # nothing is cached any more
    streams = [engine.submit(ask(prompt, 50, draft)) for prompt in prompts for draft in (LAYER, None, NGRAM)]
    answers = [finish(stream) for stream in streams]
    assert [tokens for tokens, _, _ in answers] == [tokens for tokens in plain for _ in range(3)]
    assert all(drafted > 0 for _, drafted, _ in answers[::3])


def test_the_next_turn_goes_on_where_the_first_ended(
    serve: Callable[[Path], Engine], tmp_path: Path, vocabulary: Path, n_vocab: int
) -> None:
    """What the model finds in its cache, the layer has too; where it does not, it begins with what it is told."""
    tensors, _ = rigged_glm(n_vocab, from_rows=True)
    engine = serve(write(tmp_path / "rigged.gguf", vocabulary, tensors))
    first, *_ = finish(engine.submit(ask(list(range(50)), 64, LAYER)))
    turn = [*range(50), *first, 7, 8]
    _, drafted, accepted = finish(engine.submit(ask(turn, 32, LAYER)))
    assert drafted == accepted > 10
    (idle,) = [f for f in drafter_of(engine)._idle if len(f.tokens) == len(turn) + 32]
    assert idle.places[:96] == list(range(96))

    without = [*range(100, 170)]
    plain, *_ = finish(engine.submit(ask(without, 40, None)))
    _, drafted, accepted = finish(engine.submit(ask([*without, *plain, 3], 32, LAYER)))
    assert drafted == accepted > 10
    assert drafter_of(engine)._idle[-1].places[0] == 96


def test_everything_is_given_back(serve: Callable[[Path], Engine], random_file: Path) -> None:
    """Answers that are cancelled, suspended for want of blocks, and shifted out of a full context."""
    engine = serve(random_file, context_length=128, kv_tokens=192)  # type: ignore[call-arg]
    prompts = [[i + 1] * 30 for i in range(4)]
    plain = [finish(engine.submit(ask(prompt, 60, None)))[0] for prompt in prompts]
    streams = [engine.submit(ask(prompt, 60, LAYER)) for prompt in prompts]
    stopped = engine.submit(ask([9] * 10, 100, LAYER))
    stopped.cancel()
    assert [finish(stream)[0] for stream in streams] == plain
    shifted = [
        finish(engine.submit(ask([7] * 40, 150, draft, context_policy=ContextPolicy.SHIFT)))[0]
        for draft in (None, LAYER)
    ]
    assert shifted[0] == shifted[1]
    list(stopped)
    drafter = drafter_of(engine)
    assert not drafter._followers
    for idle in drafter._idle:
        drafter.blocks.release(idle.blocks)
    assert drafter.blocks.free == drafter.model.n_blocks


def test_adapters_act_and_change_beside_guesses(
    serve: Callable[[Path], Engine], random_file: Path, tmp_path: Path, n_vocab: int
) -> None:
    """The layer reads what the model makes of its tokens with them; a change of them makes it begin anew."""
    random = np.random.default_rng(1)
    shapes = {"output.weight": (n_vocab, 64), "blk.0.attn_v.weight": (64, 64)}
    tensors = {f"{name}.lora_a": random.standard_normal((4, columns)) for name, (_, columns) in shapes.items()}
    tensors |= {f"{name}.lora_b": random.standard_normal((rows, 4)) for name, (rows, _) in shapes.items()}
    uses = [AdapterUse(write_gguf_adapter(tmp_path / "lora.gguf", "glm4moe", tensors))]
    engine = serve(random_file)
    prompt = [3] * 40
    plain, with_adapter = (finish(engine.submit(ask(prompt, 60, None, adapters=a)))[0] for a in ((), uses))
    assert plain != with_adapter
    both = [engine.submit(ask(prompt, 60, LAYER, adapters=a)) for a in ((), uses)]
    assert [finish(stream)[0] for stream in both] == [plain, with_adapter]

    stream = engine.submit(ask(prompt, 400, LAYER))
    while len(got := [event for event in stream.wait(10) if isinstance(event, Token)]) < 1:
        pass
    engine.set_adapters(stream, uses).result(60)
    tokens = [event.token for event in [*got, *stream] if isinstance(event, Token)]
    plain, *_ = finish(engine.submit(ask(prompt, 400, None)))
    changed = next(i for i, (a, b) in enumerate(zip(tokens, plain, strict=True)) if a != b)
    alone, *_ = finish(engine.submit(ask([*prompt, *tokens[:changed]], 400 - changed, None, adapters=uses)))
    assert tokens[changed:] == alone


def test_a_layer_keeps_to_a_grammar(serve: Callable[[Path], Engine], random_file: Path) -> None:
    engine = serve(random_file)
    texts = []
    for draft in (None, LAYER):
        request = ask([3, 4, 5], 40, draft, grammar='root ::= ([a-z]+ "-->" [0-9])+', ignore_eos=False)
        events = list(engine.submit(request))
        assert isinstance(events[-1], Finished)
        texts.append("".join(event.text for event in events if isinstance(event, Token)))
    assert texts[0] == texts[1]


def test_a_layer_shares_the_weights_of_its_model(serve: Callable[[Path], Engine], random_file: Path) -> None:
    engine = serve(random_file)
    draft = engine.status().draft
    assert draft is not None
    assert draft.path == random_file
    with GGUFFile.open(random_file) as file:
        own = sum(info.nbytes for name, info in file.tensors.items() if name.startswith(f"blk.{LAYERS}."))
    assert draft.weight_bytes < 1.2 * own


def test_a_layer_comes_and_goes_with_its_model(random_file: Path, vocabulary: Path) -> None:
    options = LoadOptions(device="numpy", context_length=256)
    with Engine() as engine:
        engine.load(random_file, options).result(60)
        with pytest.raises(RequestError, match="none is loaded"):
            finish(engine.submit(ask([1, 2, 3], 4, LAYER)))
        engine.load_draft(random_file, options).result(60)
        finish(engine.submit(ask([1, 2, 3], 20, LAYER)))
        engine.unload_draft().result(60)
        assert engine.status().draft is None
        engine.load_draft(random_file, options).result(60)
        assert not engine.load(vocabulary, options).result(60).predicts
        assert engine.status().draft is None


def test_sampled_answers_have_the_distribution_of_the_model(random_file: Path) -> None:
    """The second token of many answers: what the model alone gives, within what chance allows."""
    options = LoadOptions(device="numpy", context_length=64)
    with Engine() as engine:
        engine.load(random_file, options).result(60)
        engine.load_draft(random_file, options).result(60)
        counts = []
        for draft in (None, LAYER):
            sampling = SamplingParams(temperature=1.0, top_k=4, top_p=1.0, min_p=0.0, seed=11)
            streams = engine.submit_parallel(ask([1, 2, 3], 4, draft, sampling=sampling), 400)
            tokens = [finish(stream)[0][3] for stream in streams]
            counts.append(np.bincount(tokens, minlength=600))
        a, b = counts
        seen = (a + b) > 0
        chi = ((a - b)[seen] ** 2 / (a + b)[seen]).sum()
        freedom = seen.sum() - 1
        assert chi < freedom + 5 * np.sqrt(2 * freedom)


def test_an_incomplete_layer_is_told_and_the_model_runs(tmp_path: Path, vocabulary: Path, n_vocab: int) -> None:
    tensors = random_glm(n_vocab, 64)
    del tensors[f"blk.{LAYERS}.nextn.eh_proj.weight"]
    path = write(tmp_path / "incomplete.gguf", vocabulary, tensors)
    with Engine() as engine:
        info = engine.load(path, LoadOptions(device="numpy", context_length=64)).result(60)
        assert not info.predicts
        assert any("cannot be used" in note and "eh_proj" in note for note in info.notes)
        tokens, *_ = finish(engine.submit(ask([1, 2, 3], 8, None)))
        assert len(tokens) == 8
