"""Quantisation types: dequantised rows, matrix products and quantisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import DeviceError
from engine.graph import Graph
from engine.quants import QuantType, dequantize, quantize
from engine.quants.encode import ENCODERS
from tests.backends.memory_file import MemoryFile, load, one_sequence
from tests.tools.conformance.table import Section, attempt, nmse, number

_TEXT = """\
Rows that ggml quantised, and rows of random bytes, against ggml's own dequantisation; products of the rows with four
inputs, one of them with an outlier, against products in double precision. Bound of a product: NMSE 5e-4, or 1.5 times
what ggml's own integer path comes to on the same inputs where that is more. "equal" is bit for bit."""


def compare_types(fixtures: Path) -> Section:
    section = Section(
        "Quantisation types",
        _TEXT,
        ("Type", "Bits per weight", "Dequantised", "Product, numpy", "Product, OpenCL", "ggml's own", "Quantiser"),
    )
    paths = sorted((fixtures / "quants").glob("*.npz"))
    for path in sorted(paths, key=lambda path: int(np.load(path)["type_id"])):
        data = dict(np.load(path))
        quant = QuantType.by_id(int(data["type_id"]))
        reference = nmse(data["ggml_dot"], data["dot"])
        bound = max(5e-4, 1.5 * reference)

        def product(device: str, quant: QuantType = quant, data: Any = data, bound: float = bound) -> str:
            error = nmse(_product(quant, data, device), data["dot"])
            return section.judged(f"{quant.name} product on {device}", number(error), error <= bound)

        def dequantised(quant: QuantType = quant, data: Any = data) -> str:
            return section.judged(f"{quant.name} dequantised", *_dequantised(quant, data))

        section.rows.append(
            (
                quant.name,
                f"{quant.bits_per_value:.4g}",
                attempt(section, f"{quant.name} dequantised", dequantised),
                attempt(section, f"{quant.name} product on numpy", lambda: product("numpy")),
                attempt(section, f"{quant.name} product on opencl", lambda: product("opencl")),
                number(reference),
                attempt(section, f"{quant.name} quantiser", lambda quant=quant, data=data: _quantiser(quant, data)),  # type: ignore[misc]
            )
        )
    return section


def _dequantised(quant: QuantType, data: Any) -> tuple[str, bool]:
    worst = 0.0
    for kind in ("", "rnd_"):
        got, expected = dequantize(quant, data[f"{kind}q"]), data[f"{kind}deq"]
        sound = np.isfinite(expected)
        if not np.array_equal(np.isnan(got), np.isnan(expected)):
            return "NaN where ggml has none", False
        difference = np.abs(np.where(sound, got, 0) - np.where(sound, expected, 0))
        worst = max(worst, float(difference.max() / max(1e-30, np.abs(expected[sound]).max())))
    return ("equal" if worst == 0 else f"{number(worst)} of the largest"), worst <= 1e-6


def _product(quant: QuantType, data: Any, device: str) -> Any:
    x, rows = data["x"], data["q"]
    if device == "opencl":
        from engine.backends.opencl.formats import FORMATS

        if quant.name not in FORMATS:
            raise DeviceError("no kernel")
    file = MemoryFile()
    graph = Graph(n_vocab=len(rows), n_layers=0, n_kv_heads=1, head_width=16)
    inputs = graph.embed(file.add("x", "F32", x, x.shape[1]))
    graph.linear(inputs, file.add("w", quant.name, rows, x.shape[1]))
    model = load(device, file, graph)
    try:
        result = model.forward(one_sequence(np.arange(len(x)))).astype(np.float64)
    finally:
        model.close()
    return result.T


def _quantiser(quant: QuantType, data: Any) -> str:
    if quant.name not in ENCODERS:
        return ""
    rows = quantize(quant, data["src"])
    if np.array_equal(rows, data["q"]):
        return "equal bytes"
    source = data["src"].astype(np.float64)
    ours = ((dequantize(quant, rows) - source) ** 2).sum()
    theirs = ((data["deq"] - source) ** 2).sum()
    return f"{ours / theirs:.3f} of ggml's squared error"
