"""Writing the quantised file, a few rows at a time."""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelFileError, RealmError, RequestError
from engine.gguf import GGUFFile, TensorInfo
from engine.gguf.write import GGUFWriter, head_bytes, int32_key, padded_size, uint16_key, uint32_key, unfinished_path
from engine.quantize.plan import Plan, PlannedTensor
from engine.quants import QuantType, dequantize, quantize

QuantizeProgress = Callable[[float, str], None]
"""progress(fraction of the bytes read, name of the tensor at hand)."""

_CHUNK_VALUES = 1 << 19
"""Values that one thread works on at a time: 2 MiB of float32, and some times that while it searches for scales."""
_COPY_BYTES = 4 << 20
_QUANTIZATION_VERSION = 2
_LARGEST_HALF = 65504.0
_PART_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def output_paths(file: GGUFFile, plan: Plan, out: Path, split_max_bytes: int | None) -> list[tuple[Path, int]]:
    """The files that will be written and their bytes. One that needs no split keeps its plain name."""
    parts = _split(file, plan, split_max_bytes)
    return [
        (path, len(head_bytes(keys, [t.new for t in part], file.alignment)) + _data_bytes(part, file.alignment))
        for (path, keys), part in zip(_names_and_keys(file, plan, out, len(parts)), parts, strict=True)
    ]


def quantize_file(
    file: GGUFFile,
    plan: Plan,
    out: Path,
    *,
    split_max_bytes: int | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: QuantizeProgress = lambda _fraction, _name: None,
) -> list[Path]:
    """Writes the planned file (or files NAME-00001-of-0000N.gguf, each of at most split_max_bytes where a single tensor
    is not larger) and returns their paths.

    All keys are copied byte for byte but general.file_type, general.quantization_version and those of a split. Every
    file appears under its name when it is whole. Memory stays at a few chunks of rows per thread. Raises RequestError
    when the output is the input, exists already or has no room, ModelFileError for a weight that is not finite, and
    RealmError when the disk fails.
    """
    check_outputs(file, output_paths(file, plan, out, split_max_bytes), overwrite)
    parts = _split(file, plan, split_max_bytes)
    total = sum(tensor.source.nbytes for tensor in plan.tensors)
    done = 0
    written: list[Path] = []
    workers = threads or os.cpu_count() or 1
    with ExitStack() as stack:
        sources = [stack.enter_context(_opened(path)) for path in file.part_paths]
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.push(partial(_remove_incomplete, written))
        for (path, keys), part in zip(_names_and_keys(file, plan, out, len(parts)), parts, strict=True):
            with GGUFWriter(path, keys, [tensor.new for tensor in part], file.alignment) as writer:
                for tensor in part:
                    name = tensor.source.name
                    progress(done / max(total, 1), name)
                    convert = None if tensor.is_copied else partial(_convert, file.path.name, name, tensor)
                    for read, data in _in_order(pool, 2 * workers, _chunks(sources, tensor), convert):
                        writer.write(data)
                        done += read
                        progress(done / max(total, 1), name)
            written.append(path)
    return written


def _remove_incomplete(written: list[Path], kind: type[BaseException] | None, *_: object) -> None:
    """Some parts of a model are of no use to anyone."""
    if kind is not None:
        for path in written:
            path.unlink(missing_ok=True)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelFileError(f"{path} could not be opened: {error.strerror or error}.") from error


def check_outputs(file: GGUFFile, outputs: Sequence[tuple[Path, int]], overwrite: bool) -> None:
    """Raises RequestError when the planned files (see output_paths) cannot be written."""
    for path, _ in outputs:
        if path.is_dir():
            raise RequestError(f"{path} is a folder.", "Give the name of a file to write, such as model-Q8_0.gguf.")
        if not path.parent.is_dir():
            raise RequestError(f"There is no folder {path.parent} to write {path.name} into.")
        for taken in (path, unfinished_path(path)):
            if taken.exists() and any(taken.samefile(source) for source in file.part_paths):
                raise RequestError(f"{taken} is the model that is read.", "Give the new file another name.")
        if path.exists() and not overwrite:
            raise RequestError(f"{path} exists already.", "Choose another name, or give --force to write over it.")
    needed = sum(size for _, size in outputs)
    free = shutil.disk_usage(outputs[0][0].parent).free
    if needed > free:
        raise RequestError(
            f"The quantised model needs {needed / 1e9:.2f} GB, "
            f"but {outputs[0][0].parent} has {free / 1e9:.2f} GB free.",
            "Make room, choose another folder, or quantise to fewer bits.",
        )


def _split(file: GGUFFile, plan: Plan, most: int | None) -> list[list[PlannedTensor]]:
    """The tensors of each file, in order. A tensor that alone is larger than `most` has a file of its own."""
    if most is None:
        return [list(plan.tensors)]
    if most < 1:
        raise RequestError(f"Files of at most {most} bytes are not possible.", "Give a size such as 500M or 2G.")
    overhead = 256 + 2 * file.alignment  # the keys of a split, and the padding after the head
    size = overhead + sum(len(file.key_bytes(key)) for key in file.metadata)
    parts: list[list[PlannedTensor]] = [[]]
    for tensor in plan.tensors:
        needed = len(head_bytes([], [tensor.new], 1)) + padded_size(tensor.new.nbytes, file.alignment)
        if parts[-1] and size + needed > most:
            parts.append([])
            size = overhead
        parts[-1].append(tensor)
        size += needed
    return parts


def _names_and_keys(file: GGUFFile, plan: Plan, out: Path, count: int) -> list[tuple[Path, list[bytes]]]:
    changed = {
        "general.file_type": uint32_key("general.file_type", plan.file_type),
        "general.quantization_version": uint32_key("general.quantization_version", _QUANTIZATION_VERSION),
    }
    kept = [key for key in file.metadata if key not in _SPLIT_KEYS]
    keys = [changed.pop(key) if key in changed else file.key_bytes(key) for key in kept]
    keys += changed.values()
    if count == 1:
        return [(out, keys)]
    alignment = [file.key_bytes(key) for key in ("general.alignment",) if key in file.metadata]
    stem = _PART_NUMBER.sub("", out.stem)
    named = []
    for number in range(count):
        split = [
            uint16_key("split.no", number),
            uint16_key("split.count", count),
            int32_key("split.tensors.count", len(plan.tensors)),
        ]
        path = out.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}{out.suffix}")
        named.append((path, (keys if number == 0 else alignment) + split))
    return named


def _data_bytes(tensors: Sequence[PlannedTensor], alignment: int) -> int:
    return sum(padded_size(tensor.new.nbytes, alignment) for tensor in tensors)


def _chunks(sources: Sequence[BinaryIO], tensor: PlannedTensor) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor in pieces of whole rows; by reading rather than through the map, whose pages would count as
    memory of this process until the system wants them back."""
    info = tensor.source
    row_bytes = info.type.row_bytes(info.shape[-1])
    rows = info.n_values // info.shape[-1]
    step = _COPY_BYTES // row_bytes if tensor.is_copied else _CHUNK_VALUES // info.shape[-1]
    step = max(1, step)
    source = sources[info.part]
    source.seek(info.offset)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        data = source.read(count * row_bytes)
        if len(data) < count * row_bytes:
            raise _cut_short(info)
        yield np.frombuffer(data, np.uint8).reshape(count, row_bytes)


def _cut_short(info: TensorInfo) -> RealmError:
    return ModelFileError(f"The tensor {info.name} ends early: the file was changed while it was read.")


def _convert(file_name: str, name: str, tensor: PlannedTensor, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    values = dequantize(tensor.source.type, rows)
    _check_values(file_name, name, tensor.type, values)
    return quantize(tensor.type, values)


def _check_values(file_name: str, name: str, target: QuantType, values: NDArray[np.float32]) -> None:
    largest = float(np.abs(values).max(initial=0.0))  # NaN where there is one
    if not np.isfinite(largest):
        raise ModelFileError(
            f"The tensor {name} of {file_name} holds a value that is not a finite number.",
            "The file is damaged or was converted wrongly; download it again.",
        )
    if target.name == "F16" and largest > _LARGEST_HALF:
        raise RequestError(f"The tensor {name} holds {largest:g}, too large for F16.", "Choose BF16 or F32.")


def _in_order(
    pool: ThreadPoolExecutor,
    ahead: int,
    chunks: Iterator[NDArray[np.uint8]],
    convert: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None,
) -> Iterator[tuple[int, memoryview]]:
    """(bytes read, bytes to write) of each chunk, in order; at most `ahead` of them are under way."""
    if convert is None:
        for chunk in chunks:
            yield chunk.nbytes, _view(chunk)
        return
    waiting: deque[tuple[int, Future[NDArray[np.uint8]]]] = deque()
    for chunk in chunks:
        waiting.append((chunk.nbytes, pool.submit(convert, chunk)))
        if len(waiting) > ahead:
            size, future = waiting.popleft()
            yield size, _view(future.result())
    for size, future in waiting:
        yield size, _view(future.result())


def _view(array: NDArray[np.uint8]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).data
