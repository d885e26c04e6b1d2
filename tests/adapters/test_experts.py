"""Adapters on the experts of a mixture: each row gets what its own experts' matrices add."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.adapters import AdapterBase, BoundAdapter, LowRank, read_adapter
from engine.adapters.describe import describe
from engine.adapters.modules import expert_of, tensor_name
from engine.adapters.runs import AdapterSet
from engine.api import AdapterInfo
from engine.architectures import read_architecture
from engine.batch import Batch
from engine.errors import AdapterError
from engine.gguf import GGUFFile
from engine.graph import Gating, Graph, Weight
from engine.quants import QuantType, dequantize, quantize
from tests.adapters.rounding import as_kept
from tests.adapters.running import Running, check_sums
from tests.adapters.writer import write_gguf, write_gguf_adapter, write_peft
from tests.backends.memory_file import MemoryFile, load

EXPERTS, USED, ROWS, COLUMNS = 7, 3, 23, 96
OUTPUTS = {"F32": 80, "Q8_0": 64}

F64 = NDArray[np.float64]


class Mixture:
    """Two products of experts, one after the other, without anything between: each row's x goes through the first
    matrices of its experts, and what each of them makes of it through that expert's second one."""

    def __init__(self, device: str, type_name: str) -> None:
        random = np.random.default_rng(0)
        file = MemoryFile()
        self.x = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        self.logits = random.standard_normal((ROWS, EXPERTS)).astype(np.float32)
        graph = Graph(n_vocab=COLUMNS * USED, n_layers=0, n_kv_heads=1, head_width=16)
        x = graph.embed(file.add("x", "F32", self.x, COLUMNS))
        route = graph.route(
            graph.embed(file.add("logits", "F32", self.logits, EXPERTS)), n_used=USED, gating=Gating.SOFTMAX
        )
        self.weights: list[Weight] = []
        self.values: list[F64] = []
        outputs, kind = OUTPUTS[type_name], QuantType.by_name(type_name)
        for name, rows, columns in (("first", outputs, COLUMNS), ("second", COLUMNS, outputs)):
            w = (random.standard_normal((EXPERTS * rows, columns)) / np.sqrt(columns)).astype(np.float32)
            data = quantize(kind, w)
            self.weights.append(file.add(name, type_name, data, columns))
            stored = dequantize(kind, data)
            self.values.append(stored.reshape(EXPERTS, rows, columns).astype(np.float64))
            x = graph.expert_linear(x, route, self.weights[-1], None, EXPERTS)
        self.model: Any = load(device, file, graph)
        self.added: dict[int, list[LowRank]] = {}

    def add(self, rank: int, seed: int, which: tuple[int, ...] = (0, 1)) -> int:
        """which: of the two products it acts on."""
        random = np.random.default_rng(seed)
        lows = []
        for values in self.values:
            _, rows, columns = values.shape
            a = random.standard_normal((EXPERTS, rank, columns)) / np.sqrt(columns)
            b = random.standard_normal((EXPERTS, rows, rank)) / np.sqrt(rank)
            lows.append(LowRank(a.astype(np.float32), b.astype(np.float32), 0.5))
        acting = {self.weights[i]: lows[i] for i in which}
        number: int = self.model.add_adapter(BoundAdapter(info(), acting, {}))
        lows = [as_kept(low, self.model) for low in lows]
        self.added[number] = [lows[i] if i in which else LowRank(0 * lows[i].a, lows[i].b, 1.0) for i in (0, 1)]
        return number

    def run(self, lengths: list[int], sets: list[AdapterSet]) -> NDArray[np.float32]:
        """The first rows, so many for each set, in one step."""
        every = np.arange(sum(lengths), dtype=np.int32)
        sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        tables = np.zeros((len(lengths), 1), np.int32)
        out: NDArray[np.float32] = self.model.forward(Batch(every, every, sequences, tables, every, tuple(sets))).copy()
        return out

    def expected(self, lengths: list[int], sets: list[AdapterSet]) -> F64:
        """In float64, row by row, with what the adapters add merged into the matrices."""
        acting = [uses for length, uses in zip(lengths, sets, strict=True) for _ in range(length)]
        out = []
        for row, uses in enumerate(acting):
            for expert in np.argsort(-self.logits[row], kind="stable")[:USED]:
                y = self.x[row].astype(np.float64)
                for i in (0, 1):
                    matrix = self.values[i][expert].copy()
                    for number, strength in uses:
                        low = self.added[number][i]
                        matrix += strength * low.scale * (low.b[expert].astype(np.float64) @ low.a[expert])
                    y = matrix @ y
                out.append(y)
        return np.concatenate(out).reshape(len(acting), -1)


def info() -> AdapterInfo:
    low = LowRank(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), 1.0)
    return describe(Path("a"), {"w": low}, name="", kind="gguf", architecture="", base_model="", alpha=1, size_bytes=1)


@pytest.fixture(params=["F32", "Q8_0"])
def mixture(request: pytest.FixtureRequest, device: str) -> Iterator[Mixture]:
    mixture = Mixture(device, request.param)
    yield mixture
    mixture.model.close()


TOLERANCE = {"numpy": 1e-11, "opencl": 1e-5}


def test_each_row_gets_what_its_experts_add(mixture: Mixture, device: str) -> None:
    """A rank above and one below 16, two at once, on both products and on one; to the same bits alone."""
    small, large, second = mixture.add(5, 1), mixture.add(20, 2), mixture.add(8, 3, (1,))
    lengths = [11, 1, 3, 8]
    sets: list[AdapterSet] = [((large, 1.0),), (), ((small, -2.0), (large, 0.5)), ((second, 1.0),)]
    base, mixed = mixture.run(lengths, [()] * 4), mixture.run(lengths, sets)
    first = 0
    for length in lengths:
        rows = slice(first, first + length)
        expected = mixture.expected(lengths, sets)[rows]
        assert ((mixed[rows] - expected) ** 2).sum() / (expected**2).sum() < TOLERANCE[device]
        first += length
    np.testing.assert_array_equal(mixed[11], base[11])
    if device != "numpy":  # whose products depend on how many rows there are
        np.testing.assert_array_equal(mixture.run([11], [sets[0]]), mixed[:11])
        np.testing.assert_array_equal(mixture.run([1], [sets[0]]), mixed[:1])
    for number in (small, large, second):
        mixture.model.remove_adapter(number)
    np.testing.assert_array_equal(mixture.run(lengths, [()] * 4), base)


def test_many_adapters_act_on_many_rows_of_an_expert(mixture: Mixture, device: str) -> None:
    lengths, uses = [ROWS], tuple((mixture.add(3 + seed, seed), 0.25 * seed) for seed in range(1, 6))
    got, expected = mixture.run(lengths, [uses]), mixture.expected(lengths, [uses])
    assert ((got - expected) ** 2).sum() / (expected**2).sum() < TOLERANCE[device]


LAYER = "model.layers.1.mlp"


@pytest.fixture
def model(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tiny_models" / "qwen2moe.gguf"


def modules(model: Path) -> dict[str, tuple[int, int]]:
    """Of all kinds of matrices of a mixture, in its second layer: -> their shapes."""
    with GGUFFile.open(model) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
    found = {
        f"{LAYER}.gate": shapes["blk.1.ffn_gate_inp.weight"],
        f"{LAYER}.shared_expert_gate": (1, shapes["blk.1.ffn_gate_inp.weight"][1]),
    }
    for part in ("gate", "up", "down"):
        found[f"{LAYER}.shared_expert.{part}_proj"] = shapes[f"blk.1.ffn_{part}_shexp.weight"]
        count, rows, columns = shapes[f"blk.1.ffn_{part}_exps.weight"]
        found |= {f"{LAYER}.experts.{e}.{part}_proj": (rows, columns) for e in range(count)}
    return {name: (shape[0], shape[1]) for name, shape in found.items()}


def test_a_file_with_the_sums_of_both_answers_as_the_adapter_does(device: str, model: Path, tmp_path: Path) -> None:
    """From a PEFT folder with a module for each expert, and from a GGUF file with stacks of them: both as the model in
    F32 into which the same was merged."""
    folder = write_peft(tmp_path / "peft", modules(model), rank=6, size=1.0)
    matrices = read_adapter(folder).matrices
    low = matrices["blk.1.ffn_up_exps"]
    assert low.a.shape[:2] == (low.b.shape[0], 6)
    halves = {}
    with GGUFFile.open(model) as file:
        merged = {
            name: dequantize(info.type, file.data(name)).reshape(info.shape) for name, info in file.tensors.items()
        }
        for name, low in matrices.items():
            halves[f"{name}.weight.lora_a"], halves[f"{name}.weight.lora_b"] = low.a, low.b
            delta = low.scale * (low.b.astype(np.float64) @ low.a)
            shape = merged[f"{name}.weight"].shape
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + delta.reshape(shape).astype(np.float32)
        whole = write_gguf(tmp_path / "merged.gguf", merged, [file.key_bytes(key) for key in file.metadata])
    gguf = write_gguf_adapter(tmp_path / "adapter.gguf", "qwen2moe", halves, alpha=8.0)
    check_sums(model, whole, device, (folder, gguf))


@pytest.mark.parametrize(
    ("module", "name", "expert"),
    [
        ("model.layers.3.block_sparse_moe.experts.7.w1", "blk.3.ffn_gate_exps", 7),  # mixtral
        ("model.layers.3.block_sparse_moe.experts.0.w2", "blk.3.ffn_down_exps", 0),
        ("model.layers.3.block_sparse_moe.experts.12.w3", "blk.3.ffn_up_exps", 12),
        ("model.layers.0.mlp.experts.127.gate_proj", "blk.0.ffn_gate_exps", 127),  # qwen, deepseek
        ("model.layers.0.mlp.shared_expert.up_proj", "blk.0.ffn_up_shexp", None),
        ("model.layers.0.mlp.experts.1000000.up_proj", None, None),
        ("model.layers.0.mlp.experts.gate_up_proj", None, None),
    ],
)
def test_a_module_of_an_expert_is_one_of_a_tensors_experts(module: str, name: str | None, expert: int | None) -> None:
    assert (tensor_name(module), expert_of(module)) == (name, expert)


def test_each_part_of_a_divided_model_takes_its_own_experts(device: str, model: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "peft", modules(model), rank=6, size=1.0)
    prompt = np.load(model.with_suffix(".npz"))["prompt"].tolist()[:40]
    found = []
    for where in (device, f"{device}=1,numpy", f"numpy=1,{device}"):
        running = Running(model, where)
        (logits,) = running.logits([prompt], [running.uses([(folder, 0.5)])], 40)
        found.append(logits)
        running.close()
    for logits in found[1:]:
        assert ((logits - found[0]) ** 2).sum() / (found[0].astype(np.float64) ** 2).sum() < 5e-5


def test_an_adapter_may_act_on_some_experts_alone(model: Path, tmp_path: Path) -> None:
    """Each with a rank of its own; the others stay as they are."""
    every = modules(model)
    some = {f"{LAYER}.experts.{e}.up_proj": every[f"{LAYER}.experts.{e}.up_proj"] for e in (0, 2)}
    folder = write_peft(tmp_path / "some", some, rank=4)
    with GGUFFile.open(model) as file:
        base = AdapterBase.of(file, read_architecture(file).graph)
    (low,) = base.bind(read_adapter(folder)).linear.values()
    assert len(low.a) == base.matrices["blk.1.ffn_up_exps"].count > 3
    assert [bool(b.any()) for b in low.b] == [True, False, True, *[False] * (len(low.b) - 3)]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ((4, 2, 64), (5, 64, 2), "not for as many experts"),
        ((2, 2, 9), (2, 9, 2), "stand for one of 2 x 9 x 9"),
        ((2, 64), (64, 2), "stand for one of 64 x 64"),
        ((4, 3, 64), (4, 64, 2), "their ranks are 3 and 2"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(
    model: Path, tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], says: str
) -> None:
    tensors = {f"blk.0.ffn_up_exps.weight.lora_{half}": np.ones(s, np.float32) for half, s in (("a", a), ("b", b))}
    path = write_gguf_adapter(tmp_path / "a.gguf", "qwen2moe", tensors)
    with GGUFFile.open(model) as file:
        base = AdapterBase.of(file, read_architecture(file).graph)
    with pytest.raises(AdapterError, match=says):
        base.bind(read_adapter(path))
