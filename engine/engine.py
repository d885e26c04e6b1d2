"""The engine: one background thread that owns the loaded model and serves requests to it."""

from __future__ import annotations

import atexit
import gc
import logging
import threading
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Protocol, TypeVar

from engine.adapters import AdapterBase, read_adapter
from engine.api import (
    AdapterInfo,
    AdapterUse,
    DraftInfo,
    Embeddings,
    EngineState,
    EngineStatus,
    Failed,
    Figures,
    GenerateRequest,
    LoadOptions,
    LoadProgress,
    Message,
    ModelInfo,
    Pooling,
)
from engine.batch import KV_BLOCK, LoadedModel, Progress
from engine.chat_template import ChatTemplate
from engine.drafts.fit import check_draft_file, compare_vocabularies
from engine.drafts.loaded import LoadedDraft, LoadedLayer, draft_options
from engine.errors import DeviceError, ModelFileError, OutOfMemoryError, RealmError, RequestError
from engine.job import Job, JobCancelled
from engine.request import check_parallel, message_tokens, text_tokens
from engine.serving import Serving
from engine.stream import Stream
from engine.tokenizer import Tokenizer

T = TypeVar("T")

log = logging.getLogger(__name__)


class LoadedBundle(Protocol):
    """What a loader returns. template is None where the file has none, base where the model takes no adapters."""

    @property
    def model(self) -> LoadedModel: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate | None: ...
    @property
    def info(self) -> ModelInfo: ...
    @property
    def base(self) -> AdapterBase | None: ...


Loader = Callable[[Path, LoadOptions, Progress, Callable[[], bool]], LoadedBundle]
"""loader(path, options, progress, cancelled); it polls cancelled() and stops with any error when it is true."""

STAGES = {"reading": (0.0, 0.05), "compiling": (0.05, 0.35), "weights": (0.35, 0.9), "measuring": (0.9, 1.0)}
"""Which part of a whole load each stage of a loader is; only the progress bar depends on it."""


class Engine:
    """Serves one model at a time. Every method may be called from any thread and none of them waits for the model.

    Requests to the engine are worked on in the order in which they come: what is submitted after a load runs on
    the model that it loads. Between two steps of the model the thread looks at what has come in.
    """

    def __init__(self, loader: Loader | None = None) -> None:
        self._loader = loader or _load_model
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._serving: Serving | None = None
        self._draft: LoadedDraft | LoadedLayer | None = None
        self._state = EngineState.EMPTY
        self._error: RealmError | None = None
        self._progress: LoadProgress | None = None
        self._figures: Figures | None = None
        self._posting = threading.Lock()
        self._closing = False
        self._untaken = 0  # requests submitted, but not yet seen by the thread
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # -- what other threads call

    def load(self, path: Path | str, options: LoadOptions | None = None) -> Job[ModelInfo]:
        """Loads a model file in place of the one that is loaded, whose running requests end with Failed.

        A path without a file fails and leaves everything as it is.
        """
        return self._post(lambda job: self._load(job, Path(path), options or LoadOptions()))

    def unload(self) -> Job[None]:
        """Frees the model and its draft; running requests end with Failed."""
        return self._post(lambda job: self._unload())

    def load_draft(self, path: Path | str, options: LoadOptions | None = None) -> Job[DraftInfo]:
        """Loads a model that guesses tokens for the loaded one, in place of the draft that is loaded.

        It stays beside every model that it fits: loading one that it does not fit drops it, with a note. options:
        without a context length it gets that of the model. A draft that does not fit fails with the reason
        (engine.drafts.fit.check_draft tells it beforehand) and leaves everything as it is.

        The path of the loaded model itself, where its file carries a layer that predicts (ModelInfo.predicts), loads
        that layer to guess; it goes when the model does.
        """
        return self._post(lambda job: self._load_draft(job, Path(path), options or LoadOptions()))

    def unload_draft(self) -> Job[None]:
        """Frees the draft model; running requests go on without guesses."""
        return self._post(lambda job: self._drop_draft())

    def submit(self, request: GenerateRequest) -> Stream:
        """Queues a request. What is wrong with it arrives as Failed in its stream."""
        return self.submit_parallel(request, 1)[0]

    def submit_parallel(self, request: GenerateRequest, n: int) -> list[Stream]:
        """Queues a request that is answered n times; the prompt is computed once for all of them.

        The first answer is the one that `submit` would give; the others have seeds derived from the request's. What
        is wrong with the request arrives as Failed in every stream. Raises RequestError for an n that cannot be.
        """
        check_parallel(n)
        streams, submitted = [Stream() for _ in range(n)], perf_counter()

        def take() -> None:
            with self._posting:
                self._untaken -= n
            self._take(streams, request, submitted)

        with self._posting:
            if self._closing:
                for stream in streams:
                    stream.put(Failed(_closed()))
            else:
                self._untaken += n
                self._commands.put(take)
        return streams

    def set_adapters(self, stream: Stream, adapters: Sequence_[AdapterUse]) -> Job[None]:
        """Changes which adapters act on a running request, and how strongly, between two of its tokens.

        What follows is what a new request would answer that begins with the tokens up to here: they are computed anew
        under the new set, or found in the cache. The job fails where the request has ended or an adapter does not fit;
        then nothing has changed.
        """
        return self._post(lambda job: self._need_serving().set_adapters(stream, adapters))

    def check_adapter(self, path: Path | str) -> Job[AdapterInfo]:
        """Reads an adapter and says what it is; with a model loaded also whether it fits, and then keeps it at hand.

        The job fails with AdapterError (or ModelFileError for a damaged GGUF file), which says what is wrong.
        """

        def check(job: Job[AdapterInfo]) -> AdapterInfo:
            if self._serving is None:
                return read_adapter(path).info
            return self._serving.adapters.get(Path(path)).info

        return self._post(check)

    def status(self) -> EngineStatus:
        """What the engine does now; cheap."""
        serving, draft, state = self._serving, self._draft, self._state
        active = serving.n_active if serving else 0
        queued = self._untaken + (serving.n_queued if serving else 0)
        return EngineStatus(
            state=EngineState.GENERATING if state is EngineState.READY and active else state,
            model=serving.info if serving else None,
            draft=draft.info if draft else None,
            progress=self._progress,
            error=self._error,
            active_requests=active,
            queued_requests=queued,
            figures=serving.figures if serving and serving.figures else self._figures,
        )

    def count_tokens(self, messages: Sequence_[Message] | None = None, *, prompt: str | None = None) -> Job[int]:
        """How many tokens a request with these messages, or this prompt, would have."""

        def count(job: Job[int]) -> int:
            serving = self._need_serving()
            if messages is not None:
                return len(message_tokens(messages, serving.tokenizer, serving.template))
            return len(text_tokens(prompt or "", serving.tokenizer))

        return self._post(count)

    def embed(
        self,
        texts: Sequence_[str],
        pooling: Pooling | None = None,
        *,
        normalise: bool = True,
        truncate: bool = False,
    ) -> Job[Embeddings]:
        """Turns texts into vectors, between the steps of running requests.

        An encoder reads each text whole; of any other model it is the hidden state after the last norm.

        pooling: None takes the one that the model's file asks for, else the mean.
        truncate: cuts texts that are longer than the model takes, instead of failing with ContextFullError.
        """
        job: Job[Embeddings] = Job()

        def take() -> None:
            if self._closing:
                job.fail(_closed())
            elif job.claim():
                try:
                    self._need_serving().embed(job, texts, pooling, normalise=normalise, truncate=truncate)
                except Exception as error:
                    job.fail(error)

        with self._posting:
            if self._closing:
                job.fail(_closed())
            else:
                self._commands.put(take)
        return job

    def call(self, function: Callable[[LoadedModel, Tokenizer], T], *, uses_kv: bool = True) -> Job[T]:
        """Runs function(model, tokenizer) on the engine's thread between two steps.

        uses_kv: the function steps the model itself and may use every KV block; cached prefixes are dropped and
            running requests compute theirs again afterwards. Refused where the model is an encoder.
        """

        def run(job: Job[T]) -> T:
            serving = self._need_serving()
            if uses_kv:
                serving.need_decoder()
            try:
                if uses_kv:
                    serving.suspend_all()
                return function(serving.model, serving.tokenizer)
            except DeviceError as error:
                self._lose(error)
                raise

        return self._post(run)

    def sessions_saved(self) -> Job[tuple[str, ...]]:
        """Done when the session files of all ended answers are written: with sentences on those that could not be."""
        job: Job[tuple[str, ...]] = Job()

        def ask(asked: Job[None]) -> None:
            self._need_serving().sessions.when_saved(job.succeed)

        self._post(ask).add_done_callback(lambda asked: _hand_on_error(asked, job))
        return job

    def close(self, timeout: float | None = 10.0) -> None:
        """Ends running requests with Failed, frees the model and stops the thread; calling it again does nothing.

        Waits up to `timeout` seconds for the thread to end.
        """
        with self._posting:
            first, self._closing = not self._closing, True
            if first:
                self._wake()
        if first:
            atexit.unregister(self.close)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the thread

    def _post(self, work: Callable[[Job[T]], T]) -> Job[T]:
        job: Job[T] = Job()

        def run() -> None:
            if self._closing:
                job.fail(_closed())
            elif job.claim():
                try:
                    job.succeed(work(job))
                except Exception as error:
                    job.fail(error)

        with self._posting:
            if self._closing:
                job.fail(_closed())
            else:
                self._commands.put(run)
        return job

    def _wake(self) -> None:
        self._commands.put(lambda: None)

    def _run(self) -> None:
        while not self._closing:
            self._run_commands(wait=self._serving is None or not self._serving.busy)
            if self._serving is not None and self._serving.busy:
                try:
                    self._serving.step()
                    if self._serving.draft_failed:
                        self._drop_draft()
                except DeviceError as error:
                    self._lose(error)
                except Exception as error:
                    log.exception("A step failed")
                    self._lose(_unexpected("The engine failed", error))
        self._run_commands(wait=False)  # each of them only says that the engine is closed
        self._give_up_model(_closed())
        self._drop_draft()
        self._state = EngineState.CLOSED

    def _run_commands(self, wait: bool) -> None:
        if wait:
            self._commands.get()()
        if self._serving is not None and not self._commands.empty():
            self._serving.hand_out()  # they may take long
        while not self._commands.empty():
            try:
                self._commands.get_nowait()()
            except Empty:
                return

    def _take(self, streams: list[Stream], request: GenerateRequest, submitted: float) -> None:
        wanted = {number: stream for number, stream in enumerate(streams) if stream.claim()}
        if not wanted:
            return
        try:
            if self._closing:
                raise _closed()
            self._need_serving().add_parallel(wanted, request, submitted)
        except Exception as failure:
            error: RealmError
            if isinstance(failure, RealmError):
                error = failure
            else:
                log.exception("A request could not be taken up")
                error = _unexpected("This request could not be taken up", failure)
            for stream in wanted.values():
                stream.put(Failed(error))

    def _need_serving(self) -> Serving:
        if self._serving is not None:
            return self._serving
        if self._error is not None:
            raise RequestError(f"No model is loaded: {self._error.message}", self._error.hint)
        raise RequestError("No model is loaded.", "Load one first.")

    def _load(self, job: Job[ModelInfo], path: Path, options: LoadOptions) -> ModelInfo:
        if not _is_there(path):
            error: RealmError = ModelFileError(f"There is no file {path}.", "Choose a model file that exists.")
            if self._serving is None:
                self._state, self._error = EngineState.FAILED, error
            raise error
        self._give_up_model(RequestError("Another model was loaded before this answer was finished.", "Send it again."))
        self._state, self._error = EngineState.LOADING, None

        def report(stage: str, fraction: float, detail: str) -> None:
            low, high = STAGES.get(stage, (0.0, 0.0))
            whole = low + (high - low) * min(max(fraction, 0.0), 1.0)
            self._progress = LoadProgress(stage, max(whole, self._progress.fraction if self._progress else 0.0), detail)
            job.report(self._progress)

        try:
            return self._serve(path, options, report, lambda: job.cancel_requested or self._closing)
        except Exception as failure:
            error = self._load_error(failure, path, cancelled=job.cancel_requested or self._closing)
            if isinstance(error, JobCancelled):
                self._state = EngineState.EMPTY
            else:
                self._state, self._error = EngineState.FAILED, error
            raise error from failure
        finally:
            self._progress = None

    def _serve(self, path: Path, options: LoadOptions, report: Progress, cancelled: Callable[[], bool]) -> ModelInfo:
        report("reading", 0.0, path.name)
        bundle = self._loader(path, options, report, cancelled)
        try:
            if cancelled():
                raise JobCancelled
            self._serving = Serving(
                bundle.model, bundle.tokenizer, bundle.template, bundle.info, bundle.base, self._wake
            )
        except BaseException:
            bundle.model.close()
            raise
        self._state = EngineState.READY
        self._keep_fitting_draft(self._serving)
        return self._serving.info

    def _load_draft(self, job: Job[DraftInfo], path: Path, options: LoadOptions) -> DraftInfo:
        serving = self._need_serving()
        if not _is_there(path):
            raise ModelFileError(f"There is no file {path}.", "Choose a model file that exists.")

        def report(stage: str, fraction: float, detail: str) -> None:
            low, high = STAGES.get(stage, (0.0, 0.0))
            job.report(LoadProgress(stage, low + (high - low) * min(max(fraction, 0.0), 1.0), detail))

        def cancelled() -> bool:
            return job.cancel_requested or self._closing

        if serving.info.predicts and path.samefile(serving.info.path):
            return self._load_layer(serving, options, report, cancelled)
        fit = check_draft_file(serving.tokenizer.vocabulary, path)
        if not fit.fits:
            raise RequestError(
                f"{path.name} cannot draft for {serving.info.name}: {fit.reason}",
                "A draft needs the vocabulary of its model: choose a smaller model of the same family.",
            )
        self._drop_draft()
        try:
            room = draft_options(path, options, serving.info.context_length, serving.model.n_blocks * KV_BLOCK)
            bundle = self._loader(path, room, report, cancelled)
            if cancelled():
                bundle.model.close()
                raise JobCancelled
        except Exception as failure:
            raise self._load_error(failure, path, cancelled=cancelled()) from failure
        self._draft = LoadedDraft(bundle.model, bundle.tokenizer.vocabulary, bundle.info, fit.reason)
        serving.set_draft(self._draft)
        return self._draft.info

    def _load_layer(
        self, serving: Serving, options: LoadOptions, report: Progress, cancelled: Callable[[], bool]
    ) -> DraftInfo:
        from engine.loader import load_prediction

        self._drop_draft()
        try:
            model = load_prediction(serving.model, serving.info, options, report, cancelled)
            if cancelled():
                model.close()
                raise JobCancelled
        except Exception as failure:
            raise self._load_error(failure, serving.info.path, cancelled=cancelled()) from failure
        self._draft = LoadedLayer(model, serving.info)
        serving.set_draft(self._draft)
        return self._draft.info

    def _keep_fitting_draft(self, serving: Serving) -> None:
        """A new model is loaded: the draft stays if it fits that one too."""
        if not isinstance(self._draft, LoadedDraft):
            return
        fit = compare_vocabularies(serving.tokenizer.vocabulary, self._draft.vocabulary)
        if fit.fits:
            serving.set_draft(self._draft)
            return
        note = f"The draft {self._draft.info.name} does not fit this model and was unloaded: {fit.reason}"
        serving.info = replace(serving.info, notes=(*serving.info.notes, note))
        self._drop_draft()

    def _drop_draft(self) -> None:
        draft, self._draft = self._draft, None
        if draft is None:
            return
        if self._serving is not None:
            self._serving.set_draft(None)
        try:
            draft.model.close()
        except Exception:  # as with the model itself
            log.exception("The draft model could not be closed")
        del draft
        gc.collect()

    @staticmethod
    def _load_error(failure: Exception, path: Path, cancelled: bool) -> RealmError:
        if cancelled:
            return JobCancelled()
        if isinstance(failure, RealmError):
            return failure
        if isinstance(failure, MemoryError):
            return OutOfMemoryError(f"There is not enough memory to load {path.name}.", "Choose a smaller model.")
        if isinstance(failure, OSError):
            return ModelFileError(f"{path} could not be read: {failure.strerror or failure}.")
        log.error("Loading failed", exc_info=failure)
        return _unexpected(f"Loading {path.name} failed", failure)

    def _unload(self) -> None:
        self._give_up_model(RequestError("The model was unloaded before this answer was finished."))
        self._drop_draft()
        self._state, self._error = EngineState.EMPTY, None

    def _lose(self, error: RealmError) -> None:
        """The device failed, or the engine itself: nothing of what the model holds can be trusted any more."""
        self._give_up_model(error)
        self._drop_draft()
        self._state, self._error = EngineState.FAILED, error

    def _give_up_model(self, reason: RealmError) -> None:
        if isinstance(self._draft, LoadedLayer):
            self._drop_draft()  # it uses weights of the model
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._figures = serving.figures or self._figures
        serving.fail_all(reason)
        try:
            serving.close()
        except Exception:  # a lost device may fail to give back what is gone anyway
            log.exception("The model could not be closed")
        del serving
        gc.collect()  # before the next model asks for memory


def _load_model(path: Path, options: LoadOptions, progress: Progress, cancelled: Callable[[], bool]) -> LoadedBundle:
    from engine.loader import load_model  # the backends load late: not every user of the engine needs them

    return load_model(path, options, progress, cancelled)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a folder that may not be entered, a name that no file can have
        return False


def _hand_on_error(one: Job[None], other: Job[T]) -> None:
    error = one.exception(0)
    if error is not None:
        other.fail(error)


def _closed() -> RequestError:
    return RequestError("The engine is closed.", "Start the program again.")


def _unexpected(what: str, error: Exception) -> RealmError:
    return RealmError(
        f"{what} ({type(error).__name__}: {error}).", "This is a mistake in the program; please report it."
    )
