"""The variants of the CPU's kernels give the same products; the others' tests run the best one alone."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.adapters.runs import AdapterSet
from engine.backends.opencl import platforms
from engine.backends.opencl.formats import FORMATS
from engine.backends.opencl.platforms import DOT_VARIANTS, Device, devices
from engine.errors import DeviceError
from engine.graph import Graph, Piece
from tests.adapters.test_experts import Mixture
from tests.backends.memory_file import MemoryFile, load, one_sequence

TYPES = ["Q8_0", "Q5_1", "Q2_K", "Q6_K", "IQ4_XS", "MXFP4", "IQ2_S", "Q1_0"]
"""One of each way to unpack, and most ways to look up and to scale."""

COLUMNS = 512
# AVX-VNNI is AVX2 with another dot product; its kernels take as long to compile as those of two others
MOST_VARIANTS = [
    pytest.param(v.name, marks=pytest.mark.slow) if v.name == "avx-vnni" else v.name for v in DOT_VARIANTS[1:]
]


@pytest.fixture
def _devices_asked_again() -> Iterator[None]:
    """Devices keep the variant that they found first."""
    platforms._find_devices.cache_clear()
    yield
    platforms._find_devices.cache_clear()


def _products(fixtures_dir: Path, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """Each type's rows of the reference data times x, all in one model."""
    paths = {path.stem.lower(): path for path in (fixtures_dir / "quants").glob("*.npz")}
    file, pieces = MemoryFile(), []
    graph = Graph(n_vocab=8 * len(names), n_layers=0, n_kv_heads=1, head_width=16)
    inputs = graph.embed(file.add("x", "F32", x, COLUMNS))
    for name in names:
        rows = np.load(paths[name.lower()])["q"]
        pieces.append(Piece(graph.linear(inputs, file.add(name, name, rows, COLUMNS)), 1, 0, 8))
    graph.join(*pieces, heads=1)
    model = load("opencl", file, graph)
    steps = [model.forward(one_sequence(np.arange(count))).astype(np.float64) for count in (7, len(x))]
    result = np.concatenate(steps)
    model.close()
    return {name: result[:, 8 * i : 8 * i + 8] for i, name in enumerate(names)}


def _device_asked_again() -> Device:
    platforms._find_devices.cache_clear()
    device = devices()[0]
    if device.executor != "persistent":
        pytest.skip("the first device is a GPU, whose variants are others")
    return device


def _check(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, variant: str, names: list[str]) -> None:
    x = np.random.default_rng(5).normal(0, 1, (28, COLUMNS)).astype(np.float32)  # for tiles of all numbers of rows
    expected = _products(fixtures_dir, names, x)
    monkeypatch.setenv("REALM_KERNEL_VARIANT", variant)
    device = _device_asked_again()
    try:
        assert device.variants[0].name == variant
    except DeviceError as error:
        pytest.skip(str(error))
    got = _products(fixtures_dir, names, x)
    for name in names:
        assert np.abs(expected[name]).max() > 0
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5 * np.abs(expected[name]).max(), err_msg=name)


@pytest.mark.usefixtures("_devices_asked_again")
@pytest.mark.parametrize("variant", MOST_VARIANTS)
def test_variants_agree(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    _check(fixtures_dir, monkeypatch, variant, TYPES)


def _attended(device: str, kv_type: str) -> np.ndarray:
    """Rows behind 2,300 positions, three key/value heads: the last of a prompt, a lone one and the last of three."""
    heads, kv_heads, width, length = 6, 3, 64, 2304
    rng = np.random.default_rng(3)
    file = MemoryFile()
    graph = Graph(n_vocab=heads * width, n_layers=1, n_kv_heads=kv_heads, head_width=width)
    rows = rng.standard_normal((200, (heads + 2 * kv_heads) * width)).astype(np.float32)
    x = graph.embed(file.add("x", "F32", rows, rows.shape[1]))
    q = graph.slice(x, 0, heads * width)
    k, v = (graph.slice(x, (heads + i * kv_heads) * width, kv_heads * width) for i in range(2))
    out = graph.attention(q, k, v, layer=0, n_heads=heads, scale=width**-0.5, rope=None)
    as_it_is = file.add("i", "F32", np.eye(heads * width, dtype=np.float32), heads * width)
    graph.linear(graph.select_rows(out), as_it_is)
    model = load(device, file, graph, length // 32, kv_type)
    tokens = rng.integers(0, 200, length)
    blocks = rng.permutation(length // 32)
    found, at = [], 0
    for count in (*[500] * 4, 299, 1, 3):
        batch = one_sequence(tokens[at : at + count], at, blocks[: -(-(at + count) // 32)], [count - 1])
        found.append(model.forward(batch).astype(np.float64).copy())
        at += count
    model.close()
    return np.concatenate(found)


@pytest.mark.usefixtures("_devices_asked_again")
@pytest.mark.parametrize(
    "kv_type", ["f16", *(pytest.param(kv_type, marks=pytest.mark.slow) for kv_type in ("q8_0", "q4_0"))]
)
def test_variants_attend_alike(monkeypatch: pytest.MonkeyPatch, kv_type: str) -> None:
    expected = _attended("numpy", kv_type)
    for variant in (None, "avx2", "portable", "portable-bytes"):
        if variant:
            monkeypatch.setenv("REALM_KERNEL_VARIANT", variant)
        device = _device_asked_again()
        try:
            assert device.variants
        except DeviceError:
            continue  # this processor lacks its instructions
        got = _attended("opencl", kv_type)
        error = ((got - expected) ** 2).sum() / (expected**2).sum()
        # numpy keeps float32 where f16 is asked for, and rounds the same numbers to the same codes otherwise
        assert error < (2e-6 if kv_type == "f16" else 2e-4), (variant, error)


@pytest.mark.usefixtures("_devices_asked_again")
@pytest.mark.parametrize("variant", MOST_VARIANTS)
def test_variants_apply_adapters_alike(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setenv("REALM_KERNEL_VARIANT", variant)
    device = _device_asked_again()
    try:
        assert device.variants
    except DeviceError as error:
        pytest.skip(str(error))
    mixture = Mixture("opencl", "Q8_0")
    sets: list[AdapterSet] = [((mixture.add(20, 1), 1.0), (mixture.add(5, 2), 0.5)), ()]
    got, expected = mixture.run([9, 2], sets), mixture.expected([9, 2], sets)
    assert ((got - expected) ** 2).sum() / (expected**2).sum() < 1e-5
    mixture.model.close()


@pytest.mark.slow
@pytest.mark.usefixtures("_devices_asked_again")
@pytest.mark.parametrize("variant", [v.name for v in DOT_VARIANTS[1:]])
def test_variants_agree_for_every_type(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    _check(fixtures_dir, monkeypatch, variant, [name for name in FORMATS if name != "F32"])


_FOR_ANOTHER_PROCESSOR = """
import ctypes, os, sys
from engine.backends.opencl import pocl
function = ctypes.CDLL(str(pocl._bundled_library())).pocl_get_llvm_cpu_name
pocl._redirect(ctypes.cast(function, ctypes.c_void_p).value, sys.argv[1].encode())
pocl.name_host_processor = lambda: None
from engine.backends.opencl.platforms import devices
from engine.backends.opencl.source import step_source
device = next(d for d in devices() if "Portable Computing" in d.handle.platform.name)
device.build(step_source(["Q4_1", "Q2_K", "MXFP4", "BF16"], device.relax, 128, "f16"), sys.argv[2:])
os._exit(0)  # this PoCL aborts at the end of a process that took another processor's program from its cache
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="PoCL's wheel for Linux on x86")
@pytest.mark.parametrize(
    ("processor", "options"),
    [
        ("icelake-server", ("-DREALM_DOT_VNNI512", "-DREALM_F16_AVX512")),
        ("alderlake", ("-DREALM_DOT_AVX_VNNI", "-DREALM_F16_F16C")),
        ("skylake-avx512", ("-DREALM_DOT_AVX2", "-DREALM_F16_AVX512")),
    ],
)
def test_variants_of_other_processors_compile(processor: str, options: tuple[str, ...]) -> None:
    """Up to where the code of the processor itself would be made; this one need not have its instructions."""
    command = [sys.executable, "-c", _FOR_ANOTHER_PROCESSOR, processor, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
