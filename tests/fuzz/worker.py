"""The process in which damaged files are opened: limited in memory, watched from outside.

It reads numbers of inputs on standard input and answers each by one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # more threads than one reserve memory for nothing here

import numpy as np

from app.cli.info import model_facts, tensor_facts
from engine.api import LoadOptions
from engine.architectures import read_architecture
from engine.chat_template import ChatTemplate
from engine.chat_template.prompt import render_chat_tokens
from engine.errors import RealmError
from engine.gguf import GGUFFile
from engine.loader import load_model
from engine.measure import logits_of
from engine.quantize import plan_quantisation
from engine.tokenizer import Tokenizer
from tests.fuzz.inputs import sources
from tests.fuzz.mutations import mutated

MOST_MEMORY = 1 << 30
_TEXTS = ["Hello, world", " a\n\n  b <|user|> </s> ▁x", "héllo \ud83d 日本語 \x00 🙂" + "l" * 300, "hello" * 800]
_MESSAGES = [{"role": "user", "content": "Hello <|user|>"}, {"role": "assistant", "content": "Hi"}]


def input_bytes(seed: int, index: int, files: list[Any]) -> tuple[str, bytes]:
    """Input number `index` of a seed, always the same: the name of the sound file, and the damaged one."""
    rng = random.Random(f"{seed}:{index}")
    name, content = files[rng.randrange(len(files))]
    return name, mutated(rng, content, [other for _, other in files])


def limit_memory() -> None:
    """At most MOST_MEMORY of real memory: what the process has reserved without using it does not count."""
    if sys.platform == "win32":
        return
    import resource

    reserved = 0
    if sys.platform == "linux":
        size, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
        reserved = (size - resident) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + MOST_MEMORY, resource.RLIM_INFINITY))


def open_and_use(path: Path) -> Iterator[str]:
    """Does with a file what Realm does; yields the name of each stage that was refused. Anything but RealmError that
    comes out is a finding."""
    try:
        file = GGUFFile.open(path)
    except RealmError as error:
        _tell(error)
        yield "open"
        return
    with file:
        _check_bounds(file)
        for stage in (_facts, _architecture, _vocabulary, _plan, _run):
            try:
                stage(file)
            except RealmError as error:
                _tell(error)
                yield stage.__name__.removeprefix("_")


def _tell(error: RealmError) -> None:
    text = str(error)
    assert text.strip(), "an error without a message"
    assert len(text) < 4000, f"an endless message of {len(text)} characters"
    text.encode("utf-8", "strict")  # a terminal has to be able to show it


def _check_bounds(file: GGUFFile) -> None:
    """Every tensor lies inside of the map."""
    whole = file._bytes[0]
    begin = whole.__array_interface__["data"][0]
    for name, info in file.tensors.items():
        data = file.data(name)
        start = data.__array_interface__["data"][0]
        if info.part == 0:
            assert begin <= start, f"{name} begins before the file"
            assert start + data.nbytes <= begin + whole.nbytes, f"{name} ends after the file"
        assert data.size == info.nbytes


def _facts(file: GGUFFile) -> None:
    json.dumps([model_facts(file), tensor_facts(file)])


def _architecture(file: GGUFFile) -> None:
    read_architecture(file)


def _vocabulary(file: GGUFFile) -> None:
    tokenizer = Tokenizer.from_gguf(file)
    for text in _TEXTS:
        for special in (False, True):
            tokens = tokenizer.encode(text, parse_special=special)
            assert all(0 <= token < tokenizer.n_vocab for token in tokens), f"{tokens} of {tokenizer.n_vocab}"
            tokenizer.decode(tokens)
    tokenizer.decode(range(min(tokenizer.n_vocab, 1000)))
    template = ChatTemplate.from_gguf(file, tokenizer)
    if template is not None:
        render_chat_tokens(template, tokenizer, _MESSAGES)


def _plan(file: GGUFFile) -> None:
    for target in ("Q8_0", "Q4_K_M"):
        plan_quantisation(file, target)


def _run(file: GGUFFile) -> None:
    bundle = load_model(file.path, LoadOptions(device="numpy", context_length=64), lambda *_: None)
    try:
        assert logits_of(bundle.model, [0, 1, 0]).shape == (3, bundle.model.n_vocab)
    finally:
        bundle.model.close()


def answer(path: Path) -> dict[str, Any]:
    began = time.process_time()
    try:
        refused = list(open_and_use(path))
        result: dict[str, Any] = {"refused": refused}
    except MemoryError:
        result = {"finding": "MemoryError", "where": _where(), "trace": traceback.format_exc()}
    except Exception as error:
        result = {"finding": type(error).__name__, "where": _where(), "trace": traceback.format_exc()}
    result["seconds"] = time.process_time() - began
    return result


def _where() -> str:
    """The innermost line of ours that the error passed."""
    _, _, tb = sys.exc_info()
    frames = [frame for frame in traceback.extract_tb(tb) if "/engine/" in frame.filename or "/app/" in frame.filename]
    frame = frames[-1] if frames else traceback.extract_tb(tb)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"


def main() -> None:
    seed, path = int(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")  # numbers that overflow are what damaged weights are
    np.seterr(all="ignore")
    files = sources()
    limit_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        index = int(line)
        name, data = input_bytes(seed, index, files)
        path.unlink(missing_ok=True)  # a new file: one that is still mapped must not shrink
        path.write_bytes(data)
        print(json.dumps({"index": index, "source": name, **answer(path)}), flush=True)


if __name__ == "__main__":
    main()
