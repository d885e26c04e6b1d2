"""An engine whose answers a test writes by hand, and a listener that remembers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from app.conversation import ConversationEvent
from engine.api import (
    AdapterUse,
    DeviceInfo,
    EngineState,
    EngineStatus,
    Failed,
    Figures,
    Finished,
    GenerateRequest,
    Message,
    ModelInfo,
    Started,
    StopReason,
    Token,
)
from engine.errors import RealmError
from engine.stream import Stream

E = TypeVar("E", bound=ConversationEvent)

MODEL = ModelInfo(
    path=Path("/models/tiny.gguf"),
    name="Tiny",
    architecture="llama",
    parameters=1,
    quantisation="F32",
    file_bytes=1,
    context_length=128,
    trained_context_length=128,
    vocab_size=16,
    device=DeviceInfo("numpy", "numpy", "", "cpu", "", 0),
    weight_bytes=1,
    kv_bytes=1,
    scratch_bytes=1,
    has_chat_template=True,
    load_s=0.0,
)


class ScriptedStream(Stream):
    """What the test says; `cancel` is answered at once, as the engine does within a step."""

    def begin(self, prompt_tokens: int = 4) -> None:
        self.claim()
        self.put(Started(prompt_tokens, 128))

    def say(self, *pieces: str, drafted: bool = False) -> None:
        for piece in pieces:
            self.put(Token(1, piece, Figures(generated_tokens=1), drafted))

    def finish(self, text: str = "", reason: StopReason = StopReason.EOS) -> None:
        self.put(Finished(reason, text, Figures(prompt_tokens=4, generated_tokens=2)))

    def fail(self, error: RealmError) -> None:
        self.put(Failed(error))

    def cancel(self) -> None:
        super().cancel()
        self.finish(reason=StopReason.CANCELLED)


class ScriptedChange:
    """A change of adapters that is made when the test says so."""

    def __init__(self) -> None:
        self._done = False
        self._error: RealmError | None = None

    def make(self, error: RealmError | None = None) -> None:
        self._done, self._error = True, error

    def done(self) -> bool:
        return self._done

    def exception(self, timeout: float | None = None) -> RealmError | None:
        return self._error


class ScriptedEngine:
    """Remembers the requests. `reply`, where set, answers each at once; otherwise the test does, through `stream`."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.streams: list[ScriptedStream] = []
        self.reply: str | RealmError | None = None
        self.refusal: RealmError | None = None
        self.model: ModelInfo | None = MODEL
        self.changes: list[tuple[ScriptedStream, Sequence[AdapterUse], ScriptedChange]] = []

    def set_adapters(self, stream: ScriptedStream, adapters: Sequence[AdapterUse]) -> ScriptedChange:
        change = ScriptedChange()
        self.changes.append((stream, adapters, change))
        return change

    def status(self) -> EngineStatus:
        return EngineStatus(EngineState.READY if self.model else EngineState.EMPTY, model=self.model)

    def submit(self, request: GenerateRequest) -> Stream:
        if self.refusal is not None:
            raise self.refusal
        stream = ScriptedStream()
        stream.begin()
        if isinstance(self.reply, RealmError):
            stream.fail(self.reply)
        elif self.reply is not None:
            stream.say(self.reply)
            stream.finish()
        self.requests.append(request)
        self.streams.append(stream)
        return stream

    @property
    def asked(self) -> Sequence[Message]:
        """The messages of the last request."""
        assert self.requests[-1].messages is not None
        return self.requests[-1].messages

    def stream(self, number: int = -1, seconds: float = 5.0) -> ScriptedStream:
        """The stream of a request, waiting until there is one that still runs."""
        wait_for(lambda: bool(self.streams) and not self.streams[number].ended, seconds)
        return self.streams[number]


class Listener:
    """Keeps the events in order, and when their batches came."""

    def __init__(self) -> None:
        self.events: list[ConversationEvent] = []
        self.times: list[float] = []
        self.threads: set[str] = set()

    def __call__(self, events: Sequence[ConversationEvent]) -> None:
        self.times.append(time.monotonic())
        self.threads.add(threading.current_thread().name)
        self.events.extend(events)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> E:
        found = self.of(kind)
        assert found, f"no {kind.__name__} among {[type(event).__name__ for event in self.events]}"
        return found[-1]

    def wait(self, kind: type[E], count: int = 1) -> E:
        wait_for(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
