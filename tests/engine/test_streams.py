"""Everything at once on real backends: joins, leaves, cancels, parallel answers, priorities, suspensions, swapping,
sessions, full contexts, adapter switches, grammars, and guesses right and wrong, of a layer in the model's file too.
Every answer equals the one that its request gets alone, and every KV block is given back."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine.adapters import AdapterBase
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
    StopReason,
    Token,
)
from engine.batch import PredictionModel
from engine.drafts.guess import Guess
from engine.drafts.layer import LayerDrafter
from engine.drafts.loaded import LoadedLayer
from engine.drafts.speculation import Planned, Speculation
from engine.errors import ContextFullError
from engine.gguf import GGUFFile
from engine.loader import load_model, load_prediction
from engine.request import parallel_request
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.serving import Serving
from engine.stream import Stream
from engine.swap import HostMemory
from engine.tokenizer.vocabulary import read_vocabulary
from tests.adapters.writer import MODULES, write_gguf_adapter, write_peft
from tests.drafts.predicting_files import EXPERT_FF, EXPERTS, check_every_guess, guessing_glm, write

CONTEXT = 160
MOST_BLOCKS = 12
LONE_BLOCKS = CONTEXT // 32 + 1
NGRAM = DraftKind.NGRAM
GRAMMAR = 'root ::= ("she said again and again: " [a-f] [a-f] ". ")*'

STARTS = [[1, *[40] * 70], [1, *range(50, 90), *[41] * 40], [1, *range(100, 200)]]
prompts = st.builds(
    lambda start, length, end: start[:length] + end,
    st.sampled_from(STARTS),
    st.integers(0, 100),
    st.lists(st.integers(30, 60), min_size=1, max_size=40),
)
words = st.lists(st.sampled_from(["Once", " upon", " a", " time", " girl", ".", " said"]), min_size=1, max_size=25)


@dataclass
class Asked:
    """A request, its stream and the tokens that it gets alone."""

    request: GenerateRequest
    stream: Stream
    expected: list[int]
    reason: StopReason | None
    got: list[int] = field(default_factory=list)
    ended: Finished | None = None

    def read(self) -> None:
        for event in self.stream.poll():
            assert not isinstance(event, Failed), event
            if isinstance(event, Token):
                self.got.append(event.token)
            elif isinstance(event, Finished):
                self.ended = event
        assert self.got == self.expected[: len(self.got)]


class Seer:
    """A drafter that knows what comes, and is wrong now and then."""

    def __init__(self, asked: list[Asked]) -> None:
        self.asked = asked

    def propose(self, speculation: Speculation, sequences: Sequence_[Sequence], n_plain: int) -> list[Planned]:
        out = []
        for sequence in sequences:
            expected = next(one.expected for one in self.asked if one.stream is sequence.stream)
            said, drafting = sequence.n_generated, sequence.drafting
            assert drafting is not None
            tokens = expected[said : said + min(drafting.options.draft_k, sequence.guess_room)]
            tokens = [token if (said + i) % 7 else (token + 1) % 300 for i, token in enumerate(tokens)]
            if tokens:
                guess = Guess(tokens, [0.5] * len(tokens))
                out.append(Planned(sequence, drafting, guess, probe=len(tokens)))
        return out

    def forget(self, sequence: Sequence) -> None:
        pass


class Streams(RuleBasedStateMachine):
    """exact: answers are those of lone runs to the bit. numpy's products round by the shape of the batch, which is
    enough to order two candidates of a draw otherwise."""

    bundle: ClassVar[Any]
    exact: ClassVar[bool]
    adapters: ClassVar[list[Path]]
    lone: ClassVar[Serving]
    known: ClassVar[dict[str, tuple[list[int], StopReason]]]
    layer: ClassVar[PredictionModel | None] = None  # guesses in place of the Seer

    @initialize(
        n_blocks=st.integers(LONE_BLOCKS, MOST_BLOCKS),
        max_rows=st.sampled_from([4, 17, 64]),
        host_blocks=st.sampled_from([0, 4, 1000]),
    )
    def begin(self, n_blocks: int, max_rows: int, host_blocks: int) -> None:
        b = self.bundle
        self.serving = Serving(b.model, b.tokenizer, b.template, b.info, b.base)
        self.scheduler = Scheduler(n_blocks, max_rows, CONTEXT, b.model)
        self.scheduler.host = HostMemory(b.model, host_blocks * b.model.block_bytes)
        self.serving._scheduler = self.scheduler
        self.n_blocks = n_blocks
        self.asked: list[Asked] = []
        if self.layer is None:
            self.serving.speculation.set_drafter(DraftKind.MODEL, Seer(self.asked))
        else:
            self.serving.set_draft(LoadedLayer(self.layer, b.info))
        self.folder = Path(tempfile.mkdtemp())

    @rule(
        prompt=prompts,
        n=st.integers(1, 70),
        policy=st.sampled_from([ContextPolicy.STOP, ContextPolicy.SHIFT]),
        seed=st.sampled_from([None, None, 1, 2]),
        guesses=st.sampled_from([0, 0, 3, 8]),
        kind=st.sampled_from(DraftKind),
        grammar=st.sampled_from([None, None, None, GRAMMAR]),
        adapter=st.sampled_from([None, None, 0, 1]),
        priority=st.sampled_from([0, 0, 1, 2]),
        answers=st.sampled_from([1, 1, 1, 3]),
        session=st.sampled_from([None, None, "a", "b"]),
    )
    def join(
        self,
        prompt: list[int],
        n: int,
        policy: ContextPolicy,
        seed: int | None,
        guesses: int,
        kind: DraftKind,
        grammar: str | None,
        adapter: int | None,
        priority: int,
        answers: int,
        session: str | None,
    ) -> None:
        if not self.exact:
            seed = None
        self.submit(
            GenerateRequest(
                prompt_tokens=prompt,
                max_tokens=n,
                sampling=SamplingParams(temperature=0 if seed is None else 1.0, seed=seed),
                ignore_eos=grammar is None,
                context_policy=policy,
                # what is drawn from a seed stays the same with guesses from the text alone
                draft=DraftOptions(kind, draft_k=guesses) if guesses and (seed is None or kind is NGRAM) else None,
                grammar=grammar,
                adapters=() if adapter is None else (AdapterUse(self.adapters[adapter], 1.0),),
                priority=priority,
                session=None if session is None else self.folder / session,
            ),
            answers,
        )

    @rule(turns=st.lists(words, min_size=1, max_size=7), n=st.integers(1, 60), guesses=st.sampled_from([0, 4]))
    def chat(self, turns: list[list[str]], n: int, guesses: int) -> None:
        roles = ("user", "assistant") * len(turns)
        messages = [{"role": role, "content": "".join(text)} for role, text in zip(roles, turns, strict=False)]
        self.submit(
            GenerateRequest(
                messages=messages,
                max_tokens=n,
                sampling=SamplingParams(temperature=0),
                ignore_eos=True,
                context_policy=ContextPolicy.DROP_OLDEST,
                draft=DraftOptions(DraftKind.NGRAM, draft_k=guesses) if guesses else None,
            ),
            1,
        )

    def submit(self, request: GenerateRequest, answers: int) -> None:
        streams = {number: Stream() for number in range(answers)}
        for stream in streams.values():
            stream.claim()
        try:
            self.serving.add_parallel(streams, request, time.perf_counter())
        except ContextFullError:
            with pytest.raises(ContextFullError):
                self.alone(request)
            return
        for number, stream in streams.items():
            one = parallel_request(request, number)
            self.asked.append(Asked(one, stream, *self.alone(one)))

    def alone(self, request: GenerateRequest) -> tuple[list[int], StopReason]:
        request = replace(request, session=None, priority=0, draft=None)
        found = self.known.get(repr(request))
        if found is None:
            stream = Stream()
            stream.claim()
            self.lone.add(stream, request, 0.0)
            while self.lone.busy:
                self.lone.step()
            *events, last = stream.poll()
            assert isinstance(last, Finished), last
            found = [event.token for event in events if isinstance(event, Token)], last.reason
            self.known[repr(request)] = found
        return found

    @rule(n=st.integers(1, 12))
    def step(self, n: int) -> None:
        for _ in range(n):
            if self.serving.busy:
                self.serving.step()
        self.serving.hand_out()
        for one in self.asked:
            one.read()

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        running = [one for one in self.asked if not one.stream.ended]
        if running:
            one = running[which % len(running)]
            one.stream.cancel()
            self.serving._end_cancelled()
            self.serving.hand_out()
            one.read()
            assert one.ended is not None

    @rule(which=st.integers(0, 99), adapter=st.sampled_from([None, 0, 1]), strength=st.sampled_from([0.0, 0.5, 1.0]))
    def switch(self, which: int, adapter: int | None, strength: float) -> None:
        running = [
            one
            for one in self.asked
            if not one.stream.ended
            and one.request.prompt_tokens is not None
            and one.request.grammar is None
            and one.request.sampling.seed is None
        ]
        if not running:
            return
        one = running[which % len(running)]
        one.read()
        uses = () if adapter is None else (AdapterUse(self.adapters[adapter], strength),)
        self.serving.set_adapters(one.stream, uses)
        [sequence] = [s for s in [*self.scheduler.running, *self.scheduler.waiting] if s.stream is one.stream]
        assert len(one.got) == sequence.n_generated
        assert one.request.max_tokens is not None
        left = one.request.max_tokens - sequence.n_generated
        goes_on = replace(one.request, prompt_tokens=list(sequence.tokens), max_tokens=left, adapters=uses)
        rest, one.reason = self.alone(goes_on)
        one.expected = one.got + rest

    @rule()
    def instrument(self) -> None:
        """Something else uses the whole cache between two steps."""
        self.serving.suspend_all()
        noise = np.full((self.n_blocks, self.bundle.model.block_bytes), 0x3C, np.uint8)
        self.bundle.model.write_blocks(range(self.n_blocks), noise)

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        holders = [0] * self.n_blocks
        for sequence in self.scheduler.running:
            for block in sequence.blocks:
                holders[block] += 1
        assert holders == [self.scheduler.blocks.holders(block) for block in range(self.n_blocks)]
        saved = [sequence.saved for sequence in self.scheduler.waiting if sequence.saved is not None]
        assert self.scheduler.host.used_bytes == sum(one.data.nbytes for one in saved)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        while self.serving.n_active or self.serving.n_queued:
            if self.serving.busy:
                self.serving.step()
            else:
                time.sleep(0.001)  # a session is being read
        assert self.scheduler.blocks.free == self.n_blocks
        assert not self.scheduler.host.used_bytes
        for one in self.asked:
            one.read()
            assert one.ended is not None
            if one.ended.reason is not StopReason.CANCELLED:
                assert one.got == one.expected
                assert one.ended.reason is one.reason
        drafter = self.serving.speculation.drafter(DraftKind.MODEL)
        if isinstance(drafter, LayerDrafter):
            assert not drafter._followers
            for idle in drafter._idle:
                drafter.blocks.release(idle.blocks)
            assert drafter.blocks.free == drafter.model.n_blocks
        self.serving.sessions.close()
        shutil.rmtree(self.folder)


COUNTS = [
    ("numpy", 6),
    ("opencl", 5),
    pytest.param("numpy", 50, marks=pytest.mark.slow),
    pytest.param("opencl", 100, marks=pytest.mark.slow),
]


def run_machine(path: Path, device: str, examples: int, adapters_: list[Path], *, with_layer: bool) -> None:
    options = LoadOptions(device=device, context_length=CONTEXT, kv_tokens=(MOST_BLOCKS + LONE_BLOCKS) * 32)
    bundle = load_model(path, options, lambda *_: None)
    assert isinstance(bundle.base, AdapterBase)

    class OnDevice(Streams):
        exact = device != "numpy"
        adapters: ClassVar[list[Path]] = adapters_
        lone: ClassVar[Serving] = Serving(bundle.model, bundle.tokenizer, bundle.template, bundle.info, bundle.base)
        known: ClassVar[dict[str, tuple[list[int], StopReason]]] = {}

    if with_layer:
        OnDevice.layer = load_prediction(bundle.model, bundle.info, options, lambda *_: None, lambda: False)
    OnDevice.bundle = bundle
    OnDevice.lone._scheduler = Scheduler(MOST_BLOCKS + LONE_BLOCKS, 64, CONTEXT, bundle.model)
    OnDevice.lone._scheduler.blocks.allocate(MOST_BLOCKS)  # those are for the many
    run_state_machine_as_test(
        OnDevice,
        settings=settings(
            max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    OnDevice.lone.close()


@pytest.mark.parametrize(("device", "examples"), COUNTS)
def test_every_answer_equals_its_lone_run(device: str, examples: int, fixtures_dir: Path, tmp_path: Path) -> None:
    adapters = [write_peft(tmp_path / str(seed), MODULES, seed=seed, rank=3 + seed, size=2.0) for seed in range(2)]
    run_machine(fixtures_dir / "tiny_models" / "llama.gguf", device, examples, adapters, with_layer=False)


@pytest.mark.parametrize(("device", "examples"), COUNTS)
def test_with_a_layer_that_predicts_too(
    device: str, examples: int, fixtures_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guesses are right more often than not, and checked whether they pay or not."""
    check_every_guess(monkeypatch)
    vocabulary = fixtures_dir / "tiny_models" / "llama.gguf"
    with GGUFFile.open(vocabulary) as file:
        n_vocab = len(read_vocabulary(file).tokens)
    path = write(tmp_path / "guessing.gguf", vocabulary, guessing_glm(n_vocab))
    adapters = []
    for seed in range(2):
        random = np.random.default_rng(seed)
        shapes = {"output": (n_vocab, 64), "blk.0.attn_v": (64, 64), "blk.1.ffn_up_exps": (EXPERTS, EXPERT_FF, 64)}
        tensors = {}
        for name, (*stack, rows, columns) in shapes.items():
            tensors[f"{name}.weight.lora_a"] = random.standard_normal((*stack, 3 + seed, columns))
            tensors[f"{name}.weight.lora_b"] = random.standard_normal((*stack, rows, 3 + seed))
        adapters.append(write_gguf_adapter(tmp_path / f"{seed}.gguf", "glm4moe", tensors))
    run_machine(path, device, examples, adapters, with_layer=True)
