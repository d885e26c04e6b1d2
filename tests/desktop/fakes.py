"""A scripted engine and a window around it: real store, real conversations, no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.conversation import Conversation
from app.desktop.desk import Services
from app.store import ChatStore
from engine.api import (
    AdapterInfo,
    AdapterUse,
    DeviceInfo,
    DraftInfo,
    DraftKind,
    EngineState,
    EngineStatus,
    Failed,
    Figures,
    Finished,
    GenerateRequest,
    LoadOptions,
    LoadProgress,
    ModelInfo,
    PrefillProgress,
    Started,
    StopReason,
    Token,
)
from engine.errors import RealmError
from engine.stream import Stream

CPU = DeviceInfo("opencl:0", "AMD EPYC 9R14 (PoCL)", "AuthenticAMD", "cpu", "3.0", 16_000_000_000, ("avx512_vnni",))
GPU = DeviceInfo("opencl:1", "NVIDIA GeForce RTX 4070", "NVIDIA", "gpu", "560.1", 12_000_000_000, ("dp4a",))
NUMPY = DeviceInfo("numpy", "numpy 2.4", "x86_64", "cpu", "numpy", 16_000_000_000)


def model_info(path: Path, device: DeviceInfo = GPU, notes: tuple[str, ...] = ()) -> ModelInfo:
    return ModelInfo(
        path=path, name="SmolLM2 135M Instruct", architecture="llama", parameters=134_515_008, quantisation="Q4_1",
        file_bytes=98_362_432, context_length=8192, trained_context_length=8192, vocab_size=49152, device=device,
        weight_bytes=96_000_000, kv_bytes=188_743_680, scratch_bytes=20_000_000, has_chat_template=True, load_s=0.6,
        notes=notes,
    )  # fmt: skip


def adapter_info(path: Path) -> AdapterInfo:
    kind = "gguf" if path.suffix == ".gguf" else "peft"
    return AdapterInfo(
        path=path, name="", kind=kind, architecture="llama", base_model="SmolLM2-135M", rank=16, alpha=32.0, scale=2.0,
        targets=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"), n_matrices=180,
        size_bytes=4_883_456,
    )  # fmt: skip


class FakeJob:
    """A load that is over when `finish` or `fail` is called."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.value: object = None
        self.is_done = False
        self.was_cancelled = False
        self.at = LoadProgress("weights", 0.45, "")
        self._callbacks: list[Callable[[Any], None]] = []

    def done(self) -> bool:
        return self.is_done

    def result(self, timeout: float | None = None) -> object:
        if self.error is not None:
            raise self.error
        return self.value

    def exception(self, timeout: float | None = None) -> Exception | None:
        return self.error

    def progress(self) -> LoadProgress:
        return self.at

    def cancel(self) -> None:
        self.was_cancelled = True
        self.fail(RealmError("This was cancelled."))

    def cancelled(self) -> bool:
        return self.was_cancelled

    def add_done_callback(self, function: Callable[[Any], None]) -> None:
        if self.is_done:
            function(self)
        else:
            self._callbacks.append(function)

    def finish(self) -> None:
        self.is_done = True
        for function in self._callbacks:
            function(self)

    def fail(self, error: Exception) -> None:
        self.error = error
        self.finish()


class Guess(str):
    """A piece of an answer that was guessed and accepted."""


class FakeEngine:
    """Answers with `answers` in turn. An answer is text, or a list of text pieces, perhaps figures that hold from there
    on, and an error or StopReason to end."""

    def __init__(self, *answers: str | list[Any], pause: float = 0.0) -> None:
        self.answers = list(answers)
        self.pause = pause
        self.hold = threading.Event()  # while it is cleared, streams wait before their next piece
        self.hold.set()
        self.requests: list[GenerateRequest] = []
        self.loads: list[tuple[Path, LoadOptions]] = []
        self.load_errors: list[Exception] = []
        self.load_at_once = True
        self.jobs: list[FakeJob] = []
        self.device = GPU
        self.notes: tuple[str, ...] = ()
        self.closed = False
        self.drafts: list[Path | None] = []  # loaded, or None for unloaded
        self.draft_errors: list[Exception] = []
        self.speeds: dict[str, float] = {}  # tokens per second without guesses (""), by n-gram, and with each draft
        self.adapter_errors: dict[str, Exception] = {}
        self.adapter_changes: list[tuple[AdapterUse, ...]] = []
        self.change_at_once = True
        self._status = EngineStatus(EngineState.EMPTY)

    def load(self, path: Path, options: LoadOptions) -> FakeJob:
        self.loads.append((path, options))
        job = FakeJob()
        self.jobs.append(job)
        if self.load_errors:
            self._status = EngineStatus(EngineState.FAILED)
            job.fail(self.load_errors.pop(0))
        elif self.load_at_once:
            self.ready(path, NUMPY if options.device == "numpy" else self.device)
            job.finish()
        else:
            self._status = EngineStatus(EngineState.LOADING)
        return job

    def ready(self, path: Path = Path("/models/smollm2.gguf"), device: DeviceInfo | None = None) -> None:
        self._status = EngineStatus(EngineState.READY, model=model_info(path, device or self.device, self.notes))

    def unload(self) -> FakeJob:
        self._status = EngineStatus(EngineState.EMPTY)
        job = FakeJob()
        job.finish()
        return job

    def status(self) -> EngineStatus:
        return self._status

    def load_draft(self, path: Path, options: LoadOptions) -> FakeJob:
        self.drafts.append(path)
        job = FakeJob()
        self.jobs.append(job)
        if self.draft_errors:
            job.fail(self.draft_errors.pop(0))
        else:
            info = DraftInfo(path, path.stem, self.device, 90_000_000, 20_000_000)
            self._status = replace(self._status, draft=info)
            job.value = info
            job.finish()
        return job

    def unload_draft(self) -> FakeJob:
        self._status = replace(self._status, draft=None)
        self.drafts.append(None)
        job = FakeJob()
        job.finish()
        return job

    def check_adapter(self, path: Path) -> FakeJob:
        """An adapter that fits, unless `adapter_errors` has its name."""
        job = FakeJob()
        error = self.adapter_errors.get(path.name)
        if error is not None:
            job.fail(error)
        else:
            job.value = adapter_info(path)
            job.finish()
        return job

    def set_adapters(self, stream: Stream, adapters: Sequence[AdapterUse]) -> FakeJob:
        self.adapter_changes.append(tuple(adapters))
        job = FakeJob()
        self.jobs.append(job)
        if self.change_at_once:
            job.finish()
        return job

    def submit(self, request: GenerateRequest) -> Stream:
        self.requests.append(request)
        stream = Stream()
        if request.draft is None:
            key = ""
        else:
            key = "ngram" if request.draft.kind is DraftKind.NGRAM else Path(str((self.drafts or [None])[-1])).stem
        answer = self.answers.pop(0) if self.answers and not request.ignore_eos else "Fine."
        if key in self.speeds:
            measured = replace(figures(5), decode_tokens_per_s=self.speeds[key])
            if key:
                measured = replace(measured, drafted_tokens=40, accepted_tokens=28)
            answer = [measured, *(answer if isinstance(answer, list) else [answer])]
        pieces = [answer[i : i + 7] for i in range(0, len(answer), 7)] if isinstance(answer, str) else answer
        threading.Thread(target=self._answer, args=(stream, pieces), daemon=True).start()
        return stream

    def _answer(self, stream: Stream, pieces: Sequence[Any]) -> None:
        stream.claim()
        stream.put(Started(12, 8192))
        stream.put(PrefillProgress(12, 12))
        text_end: Any = StopReason.EOS
        count = 0
        measured: Figures | None = None
        for piece in pieces:
            while not self.hold.wait(0.01):
                if stream.cancelled:
                    break
            if stream.cancelled:
                break
            if isinstance(piece, StopReason | Exception):
                text_end = piece
                break
            if isinstance(piece, Figures):
                measured = piece
                continue
            count += 1
            drafted = isinstance(piece, Guess)
            stream.put(Token(count, str(piece), measured or figures(count), drafted))
            if self.pause:
                time.sleep(self.pause)
        if stream.cancelled:
            text_end = StopReason.CANCELLED
        if isinstance(text_end, RealmError):
            stream.put(Failed(text_end))
        else:
            stream.put(Finished(text_end, "", measured or figures(count)))

    def close(self) -> None:
        self.closed = True


def figures(count: int) -> Figures:
    return Figures(
        prompt_tokens=412, generated_tokens=count, prefill_s=0.18, decode_s=count / 47.3, time_to_first_token_s=0.213,
        prefill_tokens_per_s=1350.0, decode_tokens_per_s=47.3, context_used=412 + count, context_length=8192,
    )  # fmt: skip


def services(engine: FakeEngine, folder: Path, fetch: Callable[..., Path] | None = None) -> Services:
    def no_fetch(*_args: object) -> Path:
        raise RealmError("The starter model could not be fetched.", "Check the network.")

    return Services(
        open_store=lambda: ChatStore.open(folder / "chats.sqlite3"),
        open_spare_store=lambda: ChatStore.open(folder / "spare.sqlite3"),
        make_engine=lambda: engine,
        list_devices=lambda: [GPU, CPU, NUMPY],
        open_conversation=lambda engine_, store, chat_id, listen: Conversation(engine_, store, chat_id, listen),
        fetch_starter=fetch or no_fetch,
        models_dir=lambda: folder / "models",
    )
