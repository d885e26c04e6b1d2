"""Random joins, cancels and steps: every answer equals the one that its prompt gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.api import (
    DraftKind,
    DraftOptions,
    Finished,
    GenerateRequest,
    PrefillProgress,
    SamplingParams,
    Started,
    StopReason,
    Token,
)
from engine.batch import KV_BLOCK, Batch
from engine.drafts.fit import SharedTokens
from engine.drafts.model import ModelDrafter
from engine.request import parallel_request
from engine.serving import Serving
from engine.stream import Stream
from engine.swap import HostMemory
from tests.drafts.simulation import Always, agreeing
from tests.engine.fakes import N_VOCAB, FakeBundle, FakeModel, OverlappingModel, lone_run

starts = [[1] * 70, [1] * 40 + [2] * 30, list(range(90))]
prompts = st.builds(
    lambda start, length, end: start[:length] + end,
    st.sampled_from(starts),
    st.integers(0, 90),
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
)


def _draft(guesses: int, sampled: bool) -> DraftOptions | None:
    """Sampled answers are those of a lone run where guesses are point masses; with drawn ones only in distribution."""
    if not guesses:
        return None
    return DraftOptions(DraftKind.NGRAM if sampled or guesses % 2 else DraftKind.MODEL, draft_k=guesses)


class Requests(RuleBasedStateMachine):
    @initialize(
        n_blocks=st.integers(6, 24),
        max_rows=st.integers(1, 48),
        host_blocks=st.sampled_from([0, 3, 10, 1000]),
        overlaps=st.booleans(),
    )
    def load(self, n_blocks: int, max_rows: int, host_blocks: int, overlaps: bool) -> None:
        bundle = FakeBundle((OverlappingModel if overlaps else FakeModel)(n_blocks, max_rows))
        self.model: FakeModel = bundle.model
        self.serving = Serving(bundle.model, bundle.tokenizer, bundle.template, bundle.info)
        # guesses of both kinds: some that are always checked, and a draft model's, in a cache too small for a crowd
        self.serving.speculation.set_drafter(DraftKind.NGRAM, Always())
        self.drafter = ModelDrafter(
            FakeModel(12, 24, agreeing(0.7)),
            SharedTokens(np.ones(N_VOCAB, np.bool_), np.arange(N_VOCAB, dtype=np.int32)),
            N_VOCAB,
            12 * KV_BLOCK,
        )
        self.serving.speculation.set_drafter(DraftKind.MODEL, self.drafter)
        self.serving._scheduler.host = HostMemory(bundle.model, host_blocks * self.model.block_bytes)
        self.requests: list[tuple[GenerateRequest, Stream]] = []

    @rule(
        prompt=prompts,
        n=st.integers(1, 80),
        seed=st.none() | st.integers(0, 3),
        ignore_eos=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1, 5]),
        answers=st.sampled_from([1, 1, 1, 2, 4]),
        guesses=st.integers(0, 9),
    )
    def join(
        self, prompt: list[int], n: int, seed: int | None, ignore_eos: bool, priority: int, answers: int, guesses: int
    ) -> None:
        if len(prompt) >= self.serving.info.context_length:
            return
        request = GenerateRequest(
            prompt_tokens=prompt,
            max_tokens=n,
            sampling=SamplingParams(temperature=0) if seed is None else SamplingParams(seed=seed),
            ignore_eos=ignore_eos,
            priority=priority,
            draft=_draft(guesses, sampled=seed is not None),
        )
        streams = {number: Stream() for number in range(answers)}
        assert all(stream.claim() for stream in streams.values())
        self.serving.add_parallel(streams, request, 0.0)
        self.requests += [(parallel_request(request, number), stream) for number, stream in streams.items()]

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        if self.requests:
            stream = self.requests[which % len(self.requests)][1]
            stream.cancel()
            if self.serving.busy:
                self.serving.step()
            assert stream.ended

    @rule(n=st.integers(1, 20))
    def step(self, n: int) -> None:
        for _ in range(n):
            if self.serving.busy:
                self.serving.step()

    @rule()
    def instrument(self) -> None:
        """Something else uses the whole cache between two steps."""
        self.serving.suspend_all()
        self.model._cache[:] = -7

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if not hasattr(self, "serving"):
            return
        scheduler = self.serving._scheduler
        holders = [0] * self.model.n_blocks
        for sequence in scheduler.running:
            assert len(sequence.blocks) * KV_BLOCK >= sequence.n_computed
            assert sequence.block_table[: len(sequence.blocks)].tolist() == sequence.blocks
            assert not sequence.block_table[len(sequence.blocks) :].any()
            for block in sequence.blocks:
                holders[block] += 1
        assert holders == [scheduler.blocks.holders(block) for block in range(self.model.n_blocks)]
        assert scheduler.blocks.free == holders.count(0)

    @invariant()
    def host_memory_is_accounted_for(self) -> None:
        if hasattr(self, "serving"):
            scheduler = self.serving._scheduler
            saved = [sequence.saved for sequence in scheduler.waiting if sequence.saved is not None]
            assert scheduler.host.used_bytes == sum(one.data.nbytes for one in saved)
            assert not any(sequence.saved for sequence in scheduler.running)

    def teardown(self) -> None:
        if not hasattr(self, "serving"):
            return
        while self.serving.busy:
            self.serving.step()
        assert not self.serving.n_queued
        assert self.serving._scheduler.blocks.free == self.model.n_blocks
        assert self.drafter.blocks.free == self.drafter.model.n_blocks
        for request, stream in self.requests:
            assert_lone_answer(request, stream.poll(), self.serving.info.context_length)


def assert_lone_answer(request: GenerateRequest, events: list[Any], context_length: int) -> None:
    last = events[-1]
    assert isinstance(last, Finished)
    order = [type(event) for event in events]
    assert order == sorted(order, key=[Started, PrefillProgress, Token, Finished].index)
    tokens = [event.token for event in events if isinstance(event, Token)]
    prompt = list(request.prompt_tokens or ())
    assert request.max_tokens is not None
    limit = min(request.max_tokens, context_length - len(prompt))
    wanted = lone_run(prompt, limit, request.sampling, request.ignore_eos)
    if last.reason is StopReason.CANCELLED:
        assert tokens == wanted[: len(tokens)]
    else:
        assert tokens == wanted
        assert order.count(Started) == 1
        reached = StopReason.LENGTH if limit == request.max_tokens else StopReason.CONTEXT
        assert last.reason in ({reached} if request.ignore_eos else {reached, StopReason.EOS})
        figures = last.figures
        assert figures.generated_tokens == len(tokens)
        assert figures.prompt_tokens == len(prompt)
        assert 0 <= figures.cached_tokens <= len(prompt)


def test_events_are_handed_out_while_the_next_step_computes() -> None:
    stream, heard = Stream(), []
    assert stream.claim()

    class Watched(OverlappingModel):
        def forward(self, batch: Batch) -> Any:
            before = stream.poll()
            logits = super().forward(batch)
            heard.append((len(before), sum(isinstance(event, Token) for event in stream.poll())))
            return logits

    bundle = FakeBundle(Watched())
    serving = Serving(bundle.model, bundle.tokenizer, bundle.template, bundle.info)
    request = GenerateRequest(
        prompt_tokens=[1, 2, 3], max_tokens=4, sampling=SamplingParams(temperature=0), ignore_eos=True
    )
    serving.add(stream, request, 0.0)
    while serving.busy:
        serving.step()
    assert heard == [(0, 0), (0, 1), (0, 1), (0, 1)]
    assert [type(event) for event in stream.poll()] == [Token, Finished]


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
