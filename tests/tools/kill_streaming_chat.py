"""Kills a streaming chat with SIGKILL at random moments and checks what the chat history kept.

    python -m tests.tools.kill_streaming_chat [--kills 200] [--seed N] [--lanes 4] [--model FILE.gguf] [--json]

What has to hold after every kill, or the command exits with 1:
- every message that the chat had reported as stored is there, word for word, also those of earlier lives;
- every answer that was reported as finished is there in full;
- the answer that was cut off is kept as `interrupted`, is a true beginning of what the engine had written, and misses
  no text that is older than half a second at the moment of the kill;
- the history opens at once: nothing damaged, nothing still `streaming`.

Each life is a process of its own that holds a chat through the real Conversation and ChatStore, with one answer of
random length after the other, until it is killed (some while they still open the history); the next life goes on in the
same history. Several lanes with a history each run side by side. The engine is scripted unless `--model` names a model
file, which the real engine then answers with. Pieces of text are reported with the time at which the engine wrote them
(with the real engine: at which they were read from it).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.conversation import (
    AnswerEngine,
    AnswerFinished,
    AnswerStream,
    ChatOptions,
    Conversation,
    ConversationEvent,
    MessageAdded,
)
from app.store import ChatStore, MessageState, StoredMessage
from engine.api import (
    AdapterUse,
    EngineState,
    EngineStatus,
    Event,
    Figures,
    Finished,
    GenerateRequest,
    Started,
    StopReason,
    Token,
)
from engine.engine import Engine
from engine.job import Job
from engine.stream import Stream

LONGEST_LOSS_S = 0.5
LONGEST_LIFE_S = 1.5  # counted from the first message that is stored
EARLY_KILLS = 0.1  # the share of lives that end while they open the history, or little later
EARLY_S = 0.05
SLOWEST_START_S = 60.0

Report = Callable[..., None]


# The process that is killed


class ScriptedEngine:
    """Writes answers of random words at random speed, and reports each piece before the conversation can see it."""

    def __init__(self, seed: int, report: Report) -> None:
        self._random = random.Random(seed)
        self._report = report

    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.READY)

    def submit(self, request: GenerateRequest) -> Stream:
        stream = Stream()
        stream.claim()
        threading.Thread(target=self._answer, args=(stream, _question(request)), daemon=True).start()
        return stream

    def set_adapters(self, stream: Any, adapters: Sequence[AdapterUse]) -> Job[None]:
        job: Job[None] = Job()
        job.succeed(None)
        return job

    def _answer(self, stream: Stream, question: str) -> None:
        pieces = self._random.choice((1, 5, 20, 60, 400))
        pause = self._random.choice((0.002, 0.01, 0.03))
        stream.put(Started(prompt_tokens=8, context_length=8192))
        for number in range(pieces):
            text = f"{number}:{self._random.choice(('word', 'größer', '漢字', '🙂', 'line' + chr(10)))} "
            self._report("piece", question=question, text=text, at=time.monotonic())
            stream.put(Token(number, text, Figures(generated_tokens=number + 1)))
            time.sleep(pause)
        stream.put(Finished(StopReason.EOS, "", Figures(generated_tokens=pieces)))


class ReportingEngine:
    """The real engine, reporting each piece of text as the conversation reads it."""

    def __init__(self, engine: Engine, report: Report) -> None:
        self._engine = engine
        self._report = report

    def status(self) -> EngineStatus:
        return self._engine.status()

    def submit(self, request: GenerateRequest) -> AnswerStream:
        return _ReportingStream(self._engine.submit(request), _question(request), self._report)

    def set_adapters(self, stream: Any, adapters: Sequence[AdapterUse]) -> Job[None]:
        return self._engine.set_adapters(stream.original, adapters)


class _ReportingStream:
    def __init__(self, stream: Stream, question: str, report: Report) -> None:
        self.original = stream
        self._question = question
        self._report = report

    def poll(self) -> list[Event]:
        events = self.original.poll()
        for event in events:
            if isinstance(event, Token | Finished) and event.text:
                self._report("piece", question=self._question, text=event.text, at=time.monotonic())
        return events

    def cancel(self) -> None:
        self.original.cancel()


def _question(request: GenerateRequest) -> str:
    """The last line of what is asked: unanswered questions before it are part of the same message."""
    assert request.messages
    return str(request.messages[-1]["content"]).splitlines()[-1]


def chat_until_killed(history: Path, chat_id: int, seed: int, model: Path | None, output: int) -> None:
    """Holds a chat for ever; writes what happens as JSON lines to the file descriptor `output`."""
    writing = threading.Lock()

    def report(kind: str, **values: Any) -> None:
        with writing:
            os.write(output, (json.dumps({"kind": kind, **values}) + "\n").encode())

    def listen(events: Sequence[ConversationEvent]) -> None:
        for event in events:
            if isinstance(event, MessageAdded):
                report("stored", id=event.message.id, role=event.message.role, text=event.message.content)
            elif isinstance(event, AnswerFinished) and event.saved:
                report("finished", id=event.message.id, text=event.message.content)

    engine: AnswerEngine = ScriptedEngine(seed, report)
    if model is not None:
        real = Engine()
        real.load(model).result()
        engine = ReportingEngine(real, report)
    conversation = Conversation(engine, ChatStore.open(history), chat_id, listen)
    if model is not None:
        conversation.set_options(ChatOptions(max_tokens=200))
    number = 0
    while True:
        number += 1
        conversation.send(f"Question {seed}.{number}: count up, please.")
        conversation.wait_idle()


# The process that kills and checks


@dataclass
class Life:
    """One process, and what it reported."""

    process_id: int
    pipe: int
    early: bool
    kill_after: float  # seconds after its first stored message, or after its start if it is to end early
    started: float = field(default_factory=time.monotonic)
    first_stored: float | None = None
    received: bytes = b""

    def read(self) -> bool:
        """Takes what the pipe holds; False at its end."""
        data = os.read(self.pipe, 1 << 16)
        self.received += data
        if self.first_stored is None and b'"stored"' in self.received:
            self.first_stored = time.monotonic()
        return bool(data)

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.received.splitlines()]

    @property
    def kill_time(self) -> float:
        if self.early:
            return self.started + self.kill_after
        if self.first_stored is None:
            return self.started + SLOWEST_START_S
        return self.first_stored + self.kill_after


@dataclass
class Outcome:
    """What one kill hit and what it cost."""

    moment: str
    messages_checked: int
    lost_s: float
    lost_characters: int
    faults: list[str]


class Lane:
    """One chat history and the lives that go on in it."""

    def __init__(self, folder: Path, number: int, chooser: random.Random, model: Path | None) -> None:
        self.history = folder / f"lane-{number}" / "chats.sqlite3"
        self._chooser = chooser
        self._model = model
        self._kept: dict[int, StoredMessage] = {}
        with ChatStore.open(self.history) as store:
            self._chat_id = store.create_chat("Streaming").id

    def begin_life(self) -> Life:
        """A fork of this process, so that everything is imported already."""
        seed = self._chooser.getrandbits(32)
        reading, writing = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            try:
                os.close(reading)
                chat_until_killed(self.history, self._chat_id, seed, self._model, writing)
            finally:
                os._exit(1)
        os.close(writing)
        early = self._chooser.random() < EARLY_KILLS
        return Life(process_id, reading, early, self._chooser.uniform(0.0, EARLY_S if early else LONGEST_LIFE_S))

    def end_life(self, life: Life) -> Outcome:
        """Kills, takes in what the pipe still holds, opens the history and checks it."""
        killed_at = time.monotonic()
        os.kill(life.process_id, signal.SIGKILL)
        _, status = os.waitpid(life.process_id, 0)
        while life.read():
            pass
        os.close(life.pipe)
        outcome = self._check(life.reports, killed_at)
        if not os.WIFSIGNALED(status) or (life.first_stored is None and not life.early):
            outcome.faults.append("the chat ended or hung by itself, before it was killed")
        return outcome

    def _check(self, reports: list[dict[str, Any]], killed_at: float) -> Outcome:
        faults: list[str] = []
        with ChatStore.open(self.history) as store:
            faults += [f"on opening: {notice}" for notice in store.notices if "damaged" in notice]
            messages = {message.id: message for message in store.messages(self._chat_id)}
        for message in self._kept.values():
            if messages.get(message.id) != message:
                faults.append(f"message {message.id} of an earlier life is gone or changed")
        for message in messages.values():
            if message.state is MessageState.STREAMING:
                faults.append(f"answer {message.id} is still streaming")
        finished = set()
        for entry in reports:
            stored = messages.get(entry.get("id", 0))
            if entry["kind"] == "stored" and (stored is None or stored.content != entry["text"]):
                faults.append(f"message {entry['id']} had been stored and is gone or changed")
            elif entry["kind"] == "finished":
                finished.add(entry["id"])
                if stored is None or stored.content != entry["text"] or stored.state is not MessageState.COMPLETE:
                    faults.append(f"answer {entry['id']} had been finished and is gone or changed")
        moment, lost_s, lost_characters = _check_cut_answer(messages, reports, finished, killed_at, faults)
        self._kept = messages
        return Outcome(moment, len(messages), lost_s, lost_characters, faults)


def _check_cut_answer(
    messages: dict[int, StoredMessage],
    reports: list[dict[str, Any]],
    finished: set[int],
    killed_at: float,
    faults: list[str],
) -> tuple[str, float, int]:
    """The moment that the kill hit, and the seconds and characters that the answer it cut off has lost."""
    pieces = [entry for entry in reports if entry["kind"] == "piece"]
    stored = [entry for entry in reports if entry["kind"] == "stored"]
    if not stored:
        return "before its first message", 0.0, 0
    if not pieces or pieces[-1]["question"] != stored[-1]["text"]:
        return "before an answer's first text", 0.0, 0
    pieces = [piece for piece in pieces if piece["question"] == stored[-1]["text"]]
    answer = next((message for message in messages.values() if message.id > stored[-1]["id"]), None)
    if answer is None or answer.role != "assistant":
        faults.append(f"the answer to message {stored[-1]['id']} is gone")
        return "while an answer streamed", killed_at - pieces[0]["at"], sum(len(piece["text"]) for piece in pieces)
    if answer.id in finished:
        return "between two answers", 0.0, 0
    written = "".join(piece["text"] for piece in pieces)
    if not written.startswith(answer.content):
        faults.append(f"answer {answer.id} is not what the engine wrote")
    lost_s, end = 0.0, 0
    for piece in pieces:
        end += len(piece["text"])
        if end > len(answer.content):
            lost_s = max(0.0, killed_at - piece["at"])  # the oldest piece that is missing
            break
    if lost_s > LONGEST_LOSS_S:
        faults.append(f"answer {answer.id} has lost {lost_s:.3f} s of text")
    return "while an answer streamed", lost_s, len(written) - len(answer.content)


def kill_streaming_chats(kills: int, seed: int, lanes: int, model: Path | None, folder: Path) -> list[Outcome]:
    """Begins lives in `lanes` histories under `folder` until `kills` of them have been killed and checked."""
    chooser = random.Random(seed)
    lives: dict[int, tuple[Lane, Life]] = {}
    begun = 0
    for number in range(min(lanes, kills)):
        lane = Lane(folder, number, chooser, model)
        life = lane.begin_life()
        lives[life.pipe] = (lane, life)
        begun += 1
    outcomes: list[Outcome] = []
    while lives:
        lane, life = min(lives.values(), key=lambda pair: pair[1].kill_time)
        wait = max(0.0, life.kill_time - time.monotonic())
        at_end = False
        for pipe in select.select(list(lives), [], [], wait)[0]:
            if not lives[pipe][1].read():
                lane, life = lives[pipe]
                at_end = True
                break
        if not at_end and time.monotonic() < life.kill_time:
            continue
        del lives[life.pipe]
        outcomes.append(lane.end_life(life))
        if begun < kills:
            life = lane.begin_life()
            lives[life.pipe] = (lane, life)
            begun += 1
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.kill_streaming_chat",
        description="Kills a streaming chat with SIGKILL at random moments and checks that the history lost no stored"
        f" message and at most {LONGEST_LOSS_S} s of an answer.",
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same random choices")
    parser.add_argument("--lanes", type=int, default=4, metavar="N", help="histories side by side (default 4)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="let the real engine answer with this model file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        print("This command needs SIGKILL and fork, which this operating system does not have.", file=sys.stderr)
        return 2
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    lanes = 1 if options.model else max(1, options.lanes)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="realm-kills-") as folder:
        outcomes = kill_streaming_chats(options.kills, seed, lanes, options.model, Path(folder))
    print_result(outcomes, seed, time.monotonic() - begun, as_json=options.json)
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def print_result(outcomes: list[Outcome], seed: int, seconds: float, *, as_json: bool) -> None:
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    losses = [outcome.lost_s for outcome in outcomes]
    if as_json:
        result = {
            "kills": len(outcomes),
            "moments": {moment: len(group) for moment, group in _by_moment(outcomes)},
            "messages_checked": sum(outcome.messages_checked for outcome in outcomes),
            "longest_loss_s": round(max(losses, default=0.0), 4),
            "allowed_loss_s": LONGEST_LOSS_S,
            "faults": faults,
            "seed": seed,
            "seconds": round(seconds, 1),
        }
        print(json.dumps(result, indent=2))
        return
    print(
        f"{'killed':<32}{'kills':>6}{'messages':>10}{'lost: median':>14}{'longest':>10}{'characters':>12}{'faults':>8}"
    )
    for moment, group in [*_by_moment(outcomes), ("in all", outcomes)]:
        lost = [outcome.lost_s for outcome in group]
        print(
            f"{moment:<32}{len(group):>6}{sum(outcome.messages_checked for outcome in group):>10}"
            f"{statistics.median(lost) if lost else 0.0:>12.3f} s{max(lost, default=0.0):>8.3f} s"
            f"{max((outcome.lost_characters for outcome in group), default=0):>12}"
            f"{sum(len(outcome.faults) for outcome in group):>8}"
        )
    for fault in faults:
        print(f"FAULT: {fault}")
    verdict = "LOSS" if faults else "ok"
    print(f"{verdict}: {len(outcomes)} kills in {seconds:.0f} s, {LONGEST_LOSS_S} s allowed, seed {seed}")


def _by_moment(outcomes: list[Outcome]) -> list[tuple[str, list[Outcome]]]:
    moments = sorted({outcome.moment for outcome in outcomes})
    return [(moment, [outcome for outcome in outcomes if outcome.moment == moment]) for moment in moments]


if __name__ == "__main__":
    sys.exit(main())
