"""From what a person calls a model to a file, its vocabulary, or an engine that has it loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.cli.terminal import ProgressBar, say
from engine.errors import RequestError

if TYPE_CHECKING:
    from engine.api import LoadOptions, ModelInfo
    from engine.engine import Engine
    from engine.gguf import GGUFFile
    from engine.job import Job
    from engine.tokenizer import Tokenizer

T = TypeVar("T")

STARTER = "starter"
_STAGES = {
    "reading": "reading",
    "compiling": "compiling kernels for this model, once",
    "weights": "loading weights",
    "measuring": "measuring",
}


def model_path(name: str) -> Path:
    """The file of a model: a path, or "starter". RequestError when there is none."""
    if name == STARTER and not Path(name).exists():
        installed = installed_starter()
        if installed is None:
            raise RequestError("The starter model is not on this machine yet.", "`realm fetch-starter` brings it.")
        return installed
    if not name:
        raise RequestError("The path of a model is empty.", "Give that of a GGUF file, or the name starter.")
    path = Path(name).expanduser()
    if path.is_dir():
        models = sorted(path.glob("*.gguf"))
        found = f"It holds {models[0].name}; give the path of the file." if models else "Give the path of a GGUF file."
        raise RequestError(f"{name} is a folder, not a model file.", found)
    if not path.exists():
        raise RequestError(f"There is no model file {name}.", "Check the path, or use the name starter.")
    return path


def installed_starter() -> Path | None:
    """The starter model where it is in place and whole by its size; its checksum was verified when it came."""
    from app.hub import starter

    path = starter.starter_path()
    return path if path.is_file() and path.stat().st_size == starter.STARTER.size else None


@contextmanager
def open_file(name: str) -> Iterator[GGUFFile]:
    """The GGUF file of a model, without its weights being read."""
    from engine.gguf import GGUFFile

    file = GGUFFile.open(model_path(name))
    try:
        yield file
    finally:
        file.close()


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model; a file that holds only a vocabulary will do."""
    from engine.tokenizer import Tokenizer

    with open_file(name) as file:
        tokenizer = Tokenizer.from_gguf(file)
    for warning in tokenizer.warnings:
        say(f"Note: {warning}")
    return tokenizer


@contextmanager
def open_engine() -> Iterator[Engine]:
    from app.paths import cache_dir
    from engine.engine import Engine
    from engine.kept import keep_in

    keep_in(cache_dir())
    with Engine() as engine:
        yield engine


def load(engine: Engine, path: Path, options: LoadOptions, *, chats: bool) -> ModelInfo:
    """Loads a model with a progress bar on stderr, and says what the person should know about it.

    chats: messages will be put through a template; otherwise a missing one is not worth a word.
    """
    bar = ProgressBar(path.name)
    job = engine.load(path, options)
    try:
        info = wait_for(job, lambda: show_progress(bar, job))
    except KeyboardInterrupt:
        job.cancel()
        raise
    finally:
        bar.clear()
    for note in info.notes:
        if chats or "chat template" not in note:
            say(f"Note: {note}")
    return info


@contextmanager
def loaded_engine(
    name: str,
    device: str,
    context_length: int | None,
    *,
    kv_type: str = "f16",
    chats: bool = False,
    kv_tokens: int | None = None,
    memory_limit: int | None = None,
) -> Iterator[tuple[Engine, ModelInfo]]:
    """An engine with a model loaded, closed at the end."""
    from engine.api import LoadOptions

    path = model_path(name)
    if context_length is not None and context_length < 1:
        raise RequestError(f"A context length of {context_length} tokens is not possible.", "Give 1 or more.")
    with open_engine() as engine:
        options = LoadOptions(
            device=device,
            context_length=context_length,
            kv_tokens=kv_tokens,
            kv_type=kv_type,
            memory_limit=memory_limit,
        )
        yield engine, load(engine, path, options, chats=chats)


def wait_for(job: Job[T], meanwhile: Callable[[], None] | None = None) -> T:
    """The result of a job. Waits in short steps, so that Ctrl-C is heard on every system."""
    while True:
        try:
            return job.result(timeout=0.1)
        except TimeoutError:
            if job.done():
                raise
            if meanwhile is not None:
                meanwhile()


def show_progress(bar: ProgressBar, job: Job[T]) -> None:
    """Shows how far a load is."""
    progress = job.progress()
    if progress is not None:
        bar.update(progress.fraction, _STAGES.get(progress.stage, progress.stage))
