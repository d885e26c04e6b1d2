"""The kernel laboratory: each kernel alone, against what the device can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engine.api import DeviceInfo
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.graph import Graph
from engine.measure.synthetic import SyntheticFile
from engine.quants import QuantType

FIRST_TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "Q8_K", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
"""The types that are measured where no others are asked for."""

BEYOND_CACHES = 128 << 20
"""Bytes of weights that few rows go through before they come to the same again, so that no cache serves them."""

MOST_COPIES = 1024

FEW_ROWS = 16

Kernel = Literal["product", "attention", "norm"]


@dataclass(frozen=True)
class KernelCase:
    """What is timed.

    product: `rows` rows of `inputs` activations times a matrix of `type` with `outputs` rows.
    attention: `rows` rows that end at position `context`; `heads` query heads of `inputs` / `heads` columns share
        `kv_heads` of keys and values.
    norm: root-mean-square norm of `rows` rows of `inputs` activations.
    """

    kernel: Kernel
    rows: int
    inputs: int
    type: str = ""
    outputs: int = 0
    context: int = 0
    heads: int = 0
    kv_heads: int = 0

    def __str__(self) -> str:
        if self.kernel == "product":
            return f"{self.type} {self.outputs}x{self.inputs}"
        if self.kernel == "attention":
            width = self.inputs // self.heads
            return f"attention {self.heads}/{self.kv_heads} heads of {width}, context {self.context}"
        return f"norm {self.inputs}"

    @property
    def multiply_adds(self) -> int:
        """In the kernel's own sense; 0 where they are not what it is for."""
        if self.kernel == "product":
            return self.rows * self.inputs * self.outputs
        if self.kernel == "attention":
            seen = self.rows * self.context - self.rows * (self.rows - 1) // 2
            return 2 * seen * self.inputs
        return 0


@dataclass(frozen=True)
class KernelTime:
    """The shortest of some runs, and bytes that one run must read."""

    case: KernelCase
    seconds: float
    bytes_read: int

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_read / self.seconds

    @property
    def multiply_adds_per_s(self) -> float:
        return self.case.multiply_adds / self.seconds


@dataclass(frozen=True)
class Peaks:
    """Of a device: bytes read and multiply-adds per second, None where nobody measured them."""

    bandwidth: float | None
    integer: float | None
    floating: float | None

    def share(self, measured: KernelTime) -> float | None:
        """Of the limit that is nearer: reading, or the arithmetic of the kernel's own kind."""
        is_float = measured.case.kernel != "product" or measured.case.type in ("F32", "F16", "BF16")
        arithmetic = self.floating if is_float else self.integer
        shares = [
            got / peak
            for got, peak in (
                (measured.bytes_per_s, self.bandwidth),
                (measured.multiply_adds_per_s, arithmetic),
            )
            if peak
        ]
        return max(shares, default=None)


def product_cases(types: Sequence[str], shapes: Sequence[tuple[int, int]], rows: Sequence[int]) -> Iterator[KernelCase]:
    """All combinations; shapes are (outputs, inputs). Leaves out types whose blocks do not fit the shape."""
    for type_name in types:
        for outputs, inputs in shapes:
            if inputs % QuantType.by_name(type_name).block_size == 0:
                for count in rows:
                    yield KernelCase("product", count, inputs, type_name, outputs)


def other_cases(rows: Sequence[int]) -> Iterator[KernelCase]:
    """Attention as SmolLM2 135M, Qwen2.5 1.5B and Llama 3 8B have it, and norms of their widths."""
    for heads, kv_heads, width in ((9, 3, 64), (12, 2, 128), (32, 8, 128)):
        for count in rows:
            for context in (512, 4096):
                if count <= context:
                    yield KernelCase("attention", count, heads * width, context=context, heads=heads, kv_heads=kv_heads)
    for width in (576, 1536, 4096):
        for count in rows:
            yield KernelCase("norm", count, width)


def measure_kernels(
    cases: Sequence[KernelCase], device: DeviceInfo, report: Callable[[KernelTime], None]
) -> tuple[list[KernelTime], Peaks]:
    """Times the cases one after the other, `report` being told of each, on made-up weights.

    Raises DeviceError, OutOfMemoryError and UnsupportedModelError as loading a model does.
    """
    times: list[KernelTime] = []
    bandwidth = _read_bandwidth(device)
    for case in cases:
        copies = _copies(case)
        model = _model(case, copies, device)
        try:
            seconds = _best(model, _batch(case)) / copies
            read = _bytes(case, model, copies)
        finally:
            model.close()
        times.append(KernelTime(case, seconds, int(read)))
        report(times[-1])
    arithmetic: dict[str, float] = {}
    if device.id != "numpy":
        from engine.backends.opencl.peak import peak_multiply_adds

        arithmetic = peak_multiply_adds(device.id)
    peaks = Peaks(bandwidth, arithmetic.get("integer"), arithmetic.get("float"))
    return times, peaks


def _read_bandwidth(device: DeviceInfo) -> float | None:
    """Of reading weights that are many times what caches hold: those of a case may lie in them in good part."""
    model = _model(KernelCase("product", 1, 4096, "F16", 1 << 15), 1, device)
    try:
        return model.read_bandwidth()
    finally:
        model.close()


def _copies(case: KernelCase) -> int:
    """How often one step has the kernel: for few rows each time with other weights, none of them in a cache."""
    if case.kernel == "product":
        size = case.outputs * QuantType.by_name(case.type).row_bytes(case.inputs)
        return (
            max(2, min(MOST_COPIES, BEYOND_CACHES // size))
            if case.rows < FEW_ROWS
            else 1 + (1 << 22) // (case.outputs * case.inputs)
        )
    if case.kernel == "attention":
        return 8
    return 64


def _bytes(case: KernelCase, model: LoadedModel, copies: int) -> int:
    if case.kernel == "product":  # as the device holds them; _OUTPUTS more rows make the logits
        return model.weight_bytes_per_token * case.outputs // (case.outputs * copies + _OUTPUTS)
    if case.kernel == "attention":
        return 2 * 2 * case.context * case.inputs // case.heads * case.kv_heads
    return 4 * case.rows * case.inputs


_OUTPUTS = 16


def _model(case: KernelCase, copies: int, device: DeviceInfo) -> LoadedModel:
    """A model of `copies` times the kernel, and as little as possible around it."""
    file = SyntheticFile()
    width = case.inputs // case.heads if case.heads else 16
    kv_heads = case.kv_heads or 1
    graph = Graph(n_vocab=_OUTPUTS, n_layers=copies if case.heads else 0, n_kv_heads=kv_heads, head_width=width)
    kv_width = kv_heads * width if case.heads else 0
    x = graph.embed(file.add("F32", max(2, case.rows), case.inputs + 2 * kv_width))
    out = x
    if case.kernel == "product":
        for _ in range(copies):
            graph.linear(x, file.add(case.type, case.outputs, case.inputs))
    elif case.kernel == "attention":
        q = graph.slice(x, 0, case.inputs)
        k = graph.slice(x, case.inputs, kv_width)
        v = graph.slice(x, case.inputs + kv_width, kv_width)
        for layer in range(copies):
            out = graph.attention(q, k, v, layer=layer, n_heads=case.heads, scale=width**-0.5, rope=None)
    else:
        weight = file.add("F32", 1, case.inputs)
        for _ in range(copies):
            graph.rms_norm(x, weight, 1e-5)
    graph.linear(graph.select_rows(out), file.add(case.type or "F32", _OUTPUTS, case.inputs))
    arguments: dict[str, Any] = {
        "device": device,
        "n_blocks": -(-max(case.context, case.rows) // KV_BLOCK),
        "progress": lambda *_: None,
        "cancelled": lambda: False,
    }
    if device.id == "numpy":
        from engine.backends.numpy_backend import NumpyModel

        return NumpyModel(file, graph, budget_bytes=2 << 30, **arguments)  # type: ignore[arg-type]
    from engine.backends import opencl

    return opencl.load(file, graph, **arguments)  # type: ignore[arg-type]


def _batch(case: KernelCase) -> Batch:
    rows, context = case.rows, max(case.context, case.rows)
    return Batch(
        tokens=np.arange(rows, dtype=np.int32),
        positions=np.arange(context - rows, context, dtype=np.int32),
        sequences=np.zeros(rows, np.int32),
        block_tables=np.arange(-(-context // KV_BLOCK), dtype=np.int32)[None],
        logit_rows=np.array([rows - 1], np.int32),
    )


def _best(model: LoadedModel, batch: Batch) -> float:
    """Seconds of the fastest of at least four steps, the first of them apart, and of more where they are short."""
    model.forward(batch)
    best, began = float("inf"), time.perf_counter()
    for turn in range(1000):
        start = time.perf_counter()
        model.forward(batch)
        end = time.perf_counter()
        best = min(best, end - start)
        if turn >= 2 and end - began > 0.3:
            break
    return best
