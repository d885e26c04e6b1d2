"""The engine: one background thread that owns the loaded model and serves requests to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from engine.api import EngineStatus, GenerateRequest, LoadOptions, Message, ModelInfo
from engine.batch import LoadedModel, Progress
from engine.job import Job
from engine.stream import Stream

T = TypeVar("T")


class LoadedBundle(Protocol):
    """What a loader returns."""

    @property
    def model(self) -> LoadedModel: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def template(self) -> Any: ...
    @property
    def info(self) -> ModelInfo: ...


Loader = Callable[[Path, LoadOptions, Progress, Callable[[], bool]], LoadedBundle]


class Engine:
    """Serves one model at a time. Every method may be called from any thread and none of them waits for the model."""

    def __init__(self, loader: Loader | None = None) -> None:
        raise NotImplementedError

    def load(self, path: Path | str, options: LoadOptions | None = None) -> Job[ModelInfo]:
        """Loads a model file in place of the one that is loaded, whose running requests end with Failed."""
        raise NotImplementedError

    def unload(self) -> Job[None]:
        """Frees the model; running requests end with Failed."""
        raise NotImplementedError

    def submit(self, request: GenerateRequest) -> Stream:
        """Queues a request. What is wrong with it arrives as Failed in its stream."""
        raise NotImplementedError

    def status(self) -> EngineStatus:
        raise NotImplementedError

    def count_tokens(self, messages: Sequence[Message] | None = None, *, prompt: str | None = None) -> Job[int]:
        """How many tokens a request with these messages, or this prompt, would have."""
        raise NotImplementedError

    def call(self, function: Callable[[LoadedModel, Any], T], *, uses_kv: bool = True) -> Job[T]:
        """Runs function(model, tokenizer) on the engine's thread between two steps.

        uses_kv: the function steps the model itself and may use every KV block; cached prefixes are dropped and
            running requests compute theirs again afterwards.
        """
        raise NotImplementedError

    def close(self, timeout: float | None = 10.0) -> None:
        """Ends running requests, frees the model and stops the thread; calling it again does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
