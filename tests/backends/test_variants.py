"""The variants of the CPU's kernels give the same products; the others' tests run the best one alone."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.backends.opencl import platforms
from engine.backends.opencl.formats import FORMATS
from engine.backends.opencl.platforms import DOT_VARIANTS, devices
from engine.errors import DeviceError
from engine.graph import Graph, Piece
from tests.backends.memory_file import MemoryFile, load, one_sequence

TYPES = ["Q8_0", "Q5_1", "Q2_K", "Q6_K", "IQ4_XS", "MXFP4", "IQ2_S", "Q1_0"]
"""One of each way to unpack, and most ways to look up and to scale."""

COLUMNS = 512


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


def _check(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, variant: str, names: list[str]) -> None:
    x = np.random.default_rng(5).normal(0, 1, (28, COLUMNS)).astype(np.float32)  # for tiles of all numbers of rows
    expected = _products(fixtures_dir, names, x)
    monkeypatch.setenv("REALM_KERNEL_VARIANT", variant)
    platforms._find_devices.cache_clear()
    device = devices()[0]
    if device.executor != "persistent":
        pytest.skip("the first device is a GPU, whose variants are others")
    try:
        assert device.variants[0].name == variant
    except DeviceError as error:
        pytest.skip(str(error))
    got = _products(fixtures_dir, names, x)
    for name in names:
        assert np.abs(expected[name]).max() > 0
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5 * np.abs(expected[name]).max(), err_msg=name)


@pytest.mark.usefixtures("_devices_asked_again")
@pytest.mark.parametrize("variant", [v.name for v in DOT_VARIANTS[1:]])
def test_variants_agree(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    _check(fixtures_dir, monkeypatch, variant, TYPES)


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
