"""The executor for GPUs, run on whatever device there is: PoCL where there is no GPU, which proves its arithmetic.

What other tests ask of OpenCL, they ask here of this executor.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import GenerateRequest, LoadOptions, SamplingParams
from engine.architectures import read_architecture
from engine.backends.opencl import gpu_model, gpu_source, gpu_variants, platforms
from engine.backends.opencl.formats import FORMATS
from engine.backends.opencl.gpu_batch import PARTIAL_SLOTS, split_lone_row, split_slots
from engine.backends.opencl.gpu_model import GpuModel
from engine.backends.opencl.gpu_source import HeadShape, KernelSizes
from engine.backends.opencl.gpu_step import KINDS, MOST_AHEAD_BYTES, OP, read_ahead
from engine.backends.opencl.weights import DeviceWeights
from engine.batch import KV_BLOCK, Batch
from engine.devices import list_devices
from engine.engine import Engine
from engine.errors import OutOfMemoryError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Graph, split
from engine.quants import QuantType, quantize
from tests.backends import test_kv_types, test_llama, test_matmul, test_tiny_models
from tests.backends.memory_file import MemoryFile, load, one_sequence
from tests.engine.generation import generate

TYPES = sorted(FORMATS)


def _some(names: Iterable[str], now: str) -> list[Any]:
    """All names; those that are not in `now` only where slow tests are asked for: each compiles kernels of its own."""
    return [name if name in now.split() else pytest.param(name, marks=pytest.mark.slow) for name in names]


# one type of floats, one of plain quants and one with a table
SOME_TYPES = _some(TYPES, "F16 IQ4_XS")
SOME_INTEGER_TYPES = _some([n for n in TYPES if not FORMATS[n].is_float], "Q6_K IQ4_XS")
# one model of each set of operations
SOME_MODELS = _some(test_tiny_models.NAMES, "llama-q4_k_m deepseek2 gemma2 gpt-oss lfm2")


@pytest.fixture(autouse=True)
def _gpu_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: on a card, one load could choose otherwise than the next."""
    monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    monkeypatch.setattr(gpu_model, "tunes", lambda device: False)


def _on_tensor_cores() -> bool:
    """Whether steps of more than 32 rows go another way on the first device: to the same results, not the same bits."""
    return gpu_variants.tensor_variant(platforms.devices()[0]) is not None


def _within(got: np.ndarray, rows: np.ndarray, x: np.ndarray, *, part: float) -> None:
    """Differs by no more than that part of what the sizes of rows and activations allow."""
    expected = x.astype(np.float64) @ rows.T.astype(np.float64)
    size = np.outer(np.linalg.norm(x.astype(np.float64), axis=1), np.linalg.norm(rows.astype(np.float64), axis=1))
    assert (np.abs(got - expected) <= part * size).all()


@pytest.mark.parametrize("name", SOME_TYPES)
def test_products_agree_with_the_reference(fixtures_dir: Path, name: str) -> None:
    """By the matrix-vector kernels for one to eight rows and by both tiles: to the same bits."""
    data = test_matmul._reference(fixtures_dir, name)
    x, rows = data["x"], data["deq"]
    many = np.concatenate([x, -x, x[:1] * 0, x[::-1] * 3.5] * 3)[:37]
    file = MemoryFile()
    graph = Graph(n_vocab=len(rows), n_layers=0, n_kv_heads=1, head_width=16)
    graph.linear(graph.embed(file.add("x", "F32", many, many.shape[1])), file.add("w", name, data["q"], many.shape[1]))
    model = load("opencl", file, graph)
    assert isinstance(model, GpuModel)
    got = model.forward(one_sequence(np.arange(37))).copy()
    _within(got, rows, many, part=1e-5 if FORMATS[name].is_float else 1e-4)  # rounding to 15 bits
    if _on_tensor_cores():  # which add in an order of their own
        got = model.forward(one_sequence(np.arange(29))).copy()
    for n in (1, 2, 3, 7, 13):
        np.testing.assert_array_equal(model.forward(one_sequence(np.arange(n))), got[:n])
    model.close()


def test_the_twin_of_tensor_cores_passes_their_probe() -> None:
    device = next((d for d in platforms.devices() if d.is_cpu), None)
    if device is None:
        pytest.skip("no OpenCL on a processor")
    assert gpu_variants._probe_tensors(device, gpu_variants.TENSOR_TWIN)


# one type of each way in which bits lie
SOME_LAYOUTS = _some([n for n in TYPES if not FORMATS[n].is_float], "Q4_K Q6_K")


@pytest.mark.parametrize("name", SOME_LAYOUTS)
def test_products_on_tensor_cores(fixtures_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As their twin in plain C computes them: rows for more than one tile, outputs that end within one."""
    monkeypatch.setenv("REALM_TENSOR_TWIN", "1")
    data = test_matmul._reference(fixtures_dir, name)
    possible = np.abs(data["deq"]).max(1) < 4000  # what a half holds of 16 times a weight
    x, q, rows = data["x"], data["q"][possible], data["deq"][possible]
    many = np.concatenate([x, -x, x[:1] * 0, x[::-1] * 3.5] * 11)[:141]
    n = 150 // len(rows) + 1
    file = MemoryFile()
    outputs = n * len(rows)
    graph = Graph(n_vocab=outputs, n_layers=0, n_kv_heads=1, head_width=16)
    weights = file.add("w", name, np.tile(q, (n, 1)), many.shape[1])
    products = graph.linear(graph.embed(file.add("x", "F32", many, many.shape[1])), weights)
    as_it_is = file.add("i", "F32", np.eye(outputs, dtype=np.float32), outputs)
    graph.linear(graph.select_rows(products), as_it_is)
    model = load("opencl", file, graph)
    wanted = np.array([0, 1, 63, 64, 100, 127, 128, 140])
    got = model.forward(one_sequence(np.arange(141), logit_rows=wanted))
    _within(got, np.tile(rows, (n, 1)), many[wanted], part=6e-4)  # halves have 11 bits
    model.close()


@pytest.mark.parametrize("name", SOME_INTEGER_TYPES)
def test_products_of_any_bit_pattern(fixtures_dir: Path, name: str) -> None:
    data = test_matmul._reference(fixtures_dir, name)
    x = np.stack([data["rnd_x"], -data["rnd_x"]])
    _within(test_matmul._multiply(name, data["rnd_q"], x), data["rnd_deq"], x, part=1e-4)


@pytest.mark.parametrize("name", SOME_TYPES)
def test_expanded_rows_are_those_of_the_reference(fixtures_dir: Path, name: str) -> None:
    test_matmul.test_expanded_rows_are_those_of_the_reference(fixtures_dir, name)


@pytest.mark.parametrize("name", SOME_MODELS)
def test_logits_are_as_good_as_the_reference_on_integers(fixtures_dir: Path, name: str) -> None:
    test_tiny_models.test_logits_are_as_good_as_the_reference_on_integers(fixtures_dir, name)


@pytest.mark.parametrize("name", _some(test_tiny_models.NAMES, "llama-q4_k_m gemma2"))
def test_logits_through_tensor_cores(fixtures_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and attention of the prompt, as their twins in plain C compute them."""
    monkeypatch.setenv("REALM_TENSOR_TWIN", "1")
    test_tiny_models.test_logits_are_as_good_as_the_reference_on_integers(fixtures_dir, name)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_width"), [(6, 2, 64), pytest.param(2, 1, 256, marks=pytest.mark.slow)]
)
def test_agrees_with_numpy_in_any_batch(heads: int, kv_heads: int, head_width: int) -> None:
    test_llama.test_opencl_agrees_with_numpy_in_any_batch(heads, kv_heads, head_width)


@pytest.mark.parametrize("name", _some(test_kv_types.NAMES, ""))
def test_quantised_keys_and_values_are_what_numpy_keeps(fixtures_dir: Path, name: str) -> None:
    test_kv_types.test_opencl_keeps_what_numpy_keeps(fixtures_dir, name)


@pytest.mark.parametrize("shape", [(4, 2, 80), pytest.param((8, 1, 128), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kv_type", _some(["q8_0", "q4_0"], "q4_0"))
def test_quantised_heads_of_any_width(shape: tuple[int, int, int], kv_type: str) -> None:
    test_llama.opencl_against_numpy(*shape, kv_type)


@pytest.mark.parametrize("name", _some(test_kv_types.NAMES, "gemma3"))
def test_quantised_keys_and_values_through_tensor_cores(
    fixtures_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REALM_TENSOR_TWIN", "1")
    test_kv_types.test_opencl_keeps_what_numpy_keeps(fixtures_dir, name)


def test_a_row_does_not_depend_on_its_batch(fixtures_dir: Path) -> None:
    if _on_tensor_cores():
        pytest.skip("long steps go through tensor cores here, which add in an order of their own")
    test_llama.test_a_row_does_not_depend_on_its_batch(fixtures_dir)


@pytest.mark.parametrize("kv_type", _some(("f16", "q4_0"), "f16"))
def test_a_decoded_row_does_not_depend_on_what_is_prefilled_beside_it(fixtures_dir: Path, kv_type: str) -> None:
    """Bit for bit, though one step multiplies by matrix-vector kernels and the other by tiles."""
    if _on_tensor_cores():
        pytest.skip("long steps go through tensor cores here, which add in an order of their own")
    path = fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf"
    file = GGUFFile.open(path)
    model = load("opencl", file, read_architecture(file).graph, 12, kv_type)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    prompt = rng.integers(3, 400, 150).astype(np.int32)  # long enough for its attention to be split
    blocks = np.array([7, 2, 5, 0, 9], np.int32)
    model.forward(one_sequence(prompt, blocks=blocks))
    alone = model.forward(one_sequence([11], start=150, blocks=blocks)).copy()
    other = rng.integers(3, 400, 60).astype(np.int32)
    tables = np.zeros((2, 5), np.int32)
    tables[0], tables[1, :2] = blocks, [1, 3]
    together = model.forward(
        Batch(
            tokens=np.concatenate([[11], other]).astype(np.int32),
            positions=np.concatenate([[150], np.arange(60)]).astype(np.int32),
            sequences=np.repeat([0, 1], [1, 60]).astype(np.int32),
            block_tables=tables,
            logit_rows=np.array([0, 60], np.int32),
        )
    )
    np.testing.assert_array_equal(together[0], alone[0])


@pytest.mark.parametrize("workers", [1, 5])  # with shares that do not come out even, taken one after the other
def test_a_whole_step_is_the_same_kernel_by_kernel(
    fixtures_dir: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a card is asked when a model is loaded, of the parts of a divided model too; and behind other tokens."""
    if platforms.devices()[0].is_cpu:
        monkeypatch.setattr(gpu_model, "step_workers", lambda device: workers)
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf")
    graph = read_architecture(file).graph
    for part, kv_type in ((graph, "f16"), *((part, "q4_0") for part in split(graph, 1))):
        model = load("opencl", file, part, 5, kv_type=kv_type)  # type: ignore[arg-type]
        assert isinstance(model, GpuModel)
        assert model._whole is not None
        model._try_whole_step()
        assert model._whole is not None
        if kv_type == "f16":
            tokens, blocks = np.random.default_rng(1).integers(3, graph.n_vocab, 151), np.arange(5)
            for i in range(150):
                model.forward(one_sequence(tokens[i : i + 1], i, blocks, []))
            at_once = model.forward(one_sequence(tokens[150:], 150, blocks)).copy()
            model._whole = None
            np.testing.assert_array_equal(at_once, model.forward(one_sequence(tokens[150:], 150, blocks)))
        model.close()


def test_a_step_asks_for_all_weights_once_ahead_of_their_phase() -> None:
    """And for no more at a time than a cache holds."""
    ops = np.zeros(6, OP)
    matmul, other = KINDS.index("matmul"), KINDS.index("prepare")
    ops["kind"] = [other, matmul, matmul, other, other, matmul]
    ops["tiles"] = [1, 200, 100, 1, 1, 1000]
    ops["tile_bytes"] = [0, 40 << 10, 40 << 10, 0, 0, 60 << 10]
    starts, workers = [0, 1, 3, 4, 5, 6], 100
    ahead = read_ahead(ops, starts, workers)
    assert [tuple(entry)[:3] for entry in ahead] == [(1, 0, 2), (4, 0, 1), (4, 1, 2), (4, 2, 3), (0, 0, 0)]
    held = 0
    for entry in ahead[1:4]:
        held += int(entry["last"] - entry["first"]) * (60 << 10)
        assert held <= MOST_AHEAD_BYTES


def test_a_step_without_logits_is_not_waited_for_and_not_lost(fixtures_dir: Path) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama.gguf")
    model = load("opencl", file, read_architecture(file).graph)  # type: ignore[arg-type]
    tokens = np.load(fixtures_dir / "tiny_models" / "llama.npz")["prompt"]
    whole = model.forward(one_sequence(tokens)).copy()
    for start in range(0, 40, 8):
        assert model.forward(one_sequence(tokens[start : start + 8], start, np.arange(4), [])).shape[0] == 0
    last = model.forward(one_sequence(tokens[40:], 40, np.arange(4)))
    np.testing.assert_allclose(last, whole[40:], atol=0.01 * np.abs(whole).max())


@pytest.fixture(scope="module")
def starter(starter_model: Path) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REALM_EXECUTOR", "gpu")
        with Engine() as engine:
            engine.load(starter_model, LoadOptions(device="opencl", context_length=512)).result(120)
            yield engine


@pytest.mark.slow
def test_the_starter_model_follows_the_reference(starter: Engine, fixtures_dir: Path) -> None:
    """Teacher-forced: after each stretch of the reference's tokens, the next one, unless the choice was close."""
    info = starter.status().model
    assert info is not None
    assert info.device.variants[0] == "simt"
    reference: dict[str, Any] = json.loads((fixtures_dir / "real_models" / "smollm2-135m-q4_1.json").read_text())
    for case in reference["cases"][:3]:
        for step in (0, 7, 20):
            request = GenerateRequest(
                prompt_tokens=case["prompt_ids"] + case["greedy_ids"][:step],
                max_tokens=6,
                sampling=SamplingParams(temperature=0),
                ignore_eos=True,
            )
            for i, token in enumerate(generate(starter, request).tokens, step):
                if token != case["greedy_ids"][i]:
                    assert token == case["exact_top1"][i] or case["margin"][i] < 0.3, (case["id"], i)
                    break


def _large_vocabulary(name: str, vocabulary: int, width: int) -> tuple[MemoryFile, Graph]:
    """A table of embeddings and a head, with bias and residual."""
    rng, quant, file = np.random.default_rng(3), QuantType.by_name(name), MemoryFile()

    def matrix(of: str, rows: int) -> Any:
        return file.add(of, name, quantize(quant, rng.normal(0, 1, (rows, width)).astype(np.float32)), width)

    graph = Graph(n_vocab=vocabulary, n_layers=0, n_kv_heads=1, head_width=16)
    x = graph.embed(matrix("table", vocabulary))
    bias = file.add("bias", "F32", rng.normal(0, 1, (1, vocabulary)).astype(np.float32), vocabulary)
    other = graph.linear(graph.add(x, graph.linear(x, matrix("small", width))), matrix("other", vocabulary))
    graph.select_rows(graph.add(other, graph.linear(x, matrix("head", vocabulary), bias)))
    return file, graph


@pytest.mark.parametrize(
    ("name", "twin"), [("Q8_0", False), pytest.param("F16", False, marks=pytest.mark.slow), ("Q8_0", True)]
)
def test_weights_in_pieces_give_the_same_bits(name: str, twin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if twin:
        monkeypatch.setenv("REALM_TENSOR_TWIN", "1")
    file, graph = _large_vocabulary(name, 1003, 64)
    tokens = np.array([0, 127, 128, 511, 512, 639, 640, *range(40, 1000, 30), 1002], np.int32)
    cut, got = DeviceWeights._cut, []
    for n_pieces in (1, 8):
        if n_pieces > 1:  # more than one launch takes
            monkeypatch.setattr(DeviceWeights, "_cut", lambda self, weight, _: cut(self, weight, 20_000))
        model = load("opencl", file, graph)
        assert isinstance(model, GpuModel)
        assert max(len(model.weights.pieces_of(weight)) for weight in graph.weights()) >= n_pieces // 2
        steps = [model.forward(one_sequence(tokens[-n:])).copy() for n in (1, 5, 30, len(tokens))]
        model._whole = None
        got.append([*steps, model.forward(one_sequence(tokens[-1:])).copy()])
        model.close()
    for whole, pieces in zip(*got, strict=True):
        np.testing.assert_array_equal(pieces, whole)


def test_a_head_that_is_larger_than_one_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer is larger than the device allows, and rows of logits are as many as go into one."""
    file, graph = _large_vocabulary("Q8_0", 3003, 1024)
    expected = load("opencl", file, graph).forward(one_sequence(np.arange(30))).copy()
    monkeypatch.setattr(platforms.Device, "most_in_one_piece", 3003 * 1024 // 2)
    model = load("opencl", file, graph)
    assert isinstance(model, GpuModel)
    assert max(buffer.size for buffer in (*model.weights.buffers, *model._buffers)) <= 3003 * 1024 // 2
    np.testing.assert_array_equal(model.forward(one_sequence(np.arange(30))), expected)


def test_what_does_not_fit_is_refused_with_numbers(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama.gguf")
    graph = read_architecture(file).graph
    with pytest.raises(OutOfMemoryError, match=r"needs \d+\.\d\d GB .* has \d+\.\d\d GB"):
        load("opencl", file, graph, n_blocks=1 << 25)  # type: ignore[arg-type]

    monkeypatch.setattr(platforms.Device, "most_in_one_piece", 1 << 16)
    with pytest.raises(OutOfMemoryError, match=r"allows \d\.\d+ GB in one piece"):
        load("opencl", file, graph)  # type: ignore[arg-type]


def test_memory_and_bandwidth_are_told(fixtures_dir: Path) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama.gguf")
    graph = read_architecture(file).graph
    small, large = (load("opencl", file, graph, n_blocks=n).memory() for n in (4, 8))  # type: ignore[arg-type]
    assert large.kv_bytes == 2 * small.kv_bytes > 0
    assert small.weight_bytes == large.weight_bytes >= file.size // 2
    bandwidth = load("opencl", file, graph).read_bandwidth()  # type: ignore[arg-type]
    assert bandwidth is not None
    assert bandwidth > 1e8


def test_devices_tell_the_executor_and_its_variant() -> None:
    names = {variant.name for variant in platforms_variants()}
    listed = next(d for d in list_devices() if d.id.startswith("opencl"))
    assert listed.variants[0] == "simt"
    assert listed.variants[1] in names


def platforms_variants() -> tuple[platforms.Variant, ...]:
    from engine.backends.opencl.gpu_variants import SIMT_DOT_VARIANTS

    return SIMT_DOT_VARIANTS


def test_heads_that_are_too_wide_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="2048 numbers"):
        HeadShape.of(8, 8, 2048, 128)


def test_a_lone_rows_parts_cover_it_once() -> None:
    for length in (1, 127, 128, 129, 1000, 8192, 8193, 100_000):
        parts = split_lone_row(length)
        assert parts[0][0] == 0
        assert parts[-1][1] == length
        assert all(a[1] == b[0] for a, b in pairwise(parts))
        assert len(parts) <= 64


def test_batches_that_need_too_many_partial_results_are_cut_between_sequences() -> None:
    n = 64
    batch = Batch(
        tokens=np.arange(n, dtype=np.int32),
        positions=np.full(n, 20 * KV_BLOCK * 32, np.int32),
        sequences=np.arange(n, dtype=np.int32),
        block_tables=np.zeros((n, 1), np.int32),
        logit_rows=np.arange(0, n, 3, dtype=np.int32),
    )
    parts = split_slots(batch)
    assert len(parts) > 1
    assert np.array_equal(np.concatenate([p.tokens for p in parts]), batch.tokens)
    wanted = [p.tokens[p.logit_rows] for p in parts]
    assert np.array_equal(np.concatenate(wanted), batch.tokens[batch.logit_rows])
    for part in parts:
        assert sum(len(split_lone_row(int(p) + 1)) for p in part.positions) <= PARTIAL_SLOTS
    short = replace(batch, positions=batch.positions * 0)
    assert len(split_slots(short)) == 1


TARGETS = {
    "nvidia": ["-target", "nvptx64-nvidia-nvcl", "-Xclang", "-target-cpu", "-Xclang", "sm_70", "-DREALM_SIMT_DP4A"],
    "amd-rdna2": ["-target", "amdgcn-amd-amdhsa", "-nogpulib", "-mcpu=gfx1030", "-DREALM_SIMT_SDOT4"],
    "amd-rdna3": ["-target", "amdgcn-amd-amdhsa", "-nogpulib", "-mcpu=gfx1100", "-DREALM_SIMT_SUDOT4"],
    "intel": [
        *("-target", "spir64", "-cl-std=CL3.0", "-DREALM_SIMT_KHR", "-Xclang"),
        "-cl-ext=+cl_khr_integer_dot_product,+__opencl_c_integer_dot_product_input_4x8bit_packed",
    ],
    "portable": ["-target", "spir64"],
}
SHAPES = [(9, 3, 64, 64), (32, 8, 128, 128), (8, 1, 256, 256), (4, 2, 80, 80), (16, 1, 576, 512), (40, 1, 16, 16)]


def _clang() -> str:
    """A clang that knows GPUs well enough: 15 or later."""
    for name in ["clang", *(f"clang-{version}" for version in range(25, 14, -1))]:
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            found = re.search(r"version (\d+)", version)
            if found and int(found[1]) >= 15 and "Apple" not in version:
                return path
    pytest.skip("no clang 15 or later to compile for GPUs with")


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for_gpus(tmp_path: Path, target: str) -> None:
    """By clang's OpenCL front end, as OpenCL C 1.2 with all warnings as errors; every type, many shapes of heads."""
    clang = _clang()
    shapes = [HeadShape.of(*shape) for shape in SHAPES]
    whole = KernelSizes.of(1024, whole_steps=True)
    sources = {
        "small": gpu_source.simt_source(
            ["Q4_K", "F16"], shapes, KernelSizes.of(128, whole_steps=False), experts=True, tensor_cores=False
        ),
        "all": gpu_source.simt_source(TYPES, shapes, whole, experts=True, tensor_cores=target == "nvidia"),
        **{
            kv_type: gpu_source.simt_source(
                ["Q8_0"], shapes, sizes, experts=False, tensor_cores=target == "nvidia", kv_type=kv_type
            )
            for kv_type, sizes in (("q8_0", KernelSizes.of(128, whole_steps=False)), ("q4_0", whole))
        },
        "repack": gpu_source.repack_source(TYPES),
    }
    flags = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable", "-fsyntax-only"]
    for name, source in sources.items():
        path = tmp_path / f"{name}.cl"
        path.write_text(source)
        command = [clang, "-x", "cl", "-cl-std=CL1.2", "-Xclang", "-finclude-default-header", *flags, *TARGETS[target]]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_local_memory_stays_within_what_every_gpu_has(shape: tuple[int, int, int, int], quantised: bool) -> None:
    """32 KB, as attention's kernels add theirs up; those of matrix products do not depend on the model. Whole steps run
    only on cards that have 48 KB."""
    s = HeadShape.of(*shape)
    to = 32 if quantised else 16
    padded, width = -(-s.value_width // to) * to, -(-s.width // 32) * 32 if quantised else s.width

    def single(threads: int) -> int:
        lanes = min(padded // 2, threads)
        most = threads // lanes if padded // 2 <= threads else 1
        parts = next(n for n in (8, 4, 2, 1) if most >= n)
        return s.single_heads * (width + 16) + max(s.single_heads * threads, (parts - 1) * s.single_heads * padded)

    v_rows = 16 if padded > 256 else 32
    tile = max(32 * s.tile_queries + 1024, v_rows * padded // 2) + 32 * s.tile_queries + 8 * s.tile_queries
    assert 4 * max(single(128), tile) <= 32 << 10
    assert 4 * single(gpu_source.STEP_THREADS) <= 48 << 10
