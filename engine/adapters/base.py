"""Matching an adapter with the model that it is to act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from engine.adapters.adapter import MERGE, Adapter, LowRank
from engine.adapters.heads import by_heads, halves_of, whole_shape
from engine.adapters.parameters import fitted
from engine.api import AdapterInfo
from engine.errors import AdapterError
from engine.gguf import GGUFFile
from engine.graph import Embed, ExpertLinear, Graph, Index, Linear, Weight

_PERMUTED = ("llama", "granite", "smollm3")
"""Architectures whose conversion to GGUF permutes the rows of queries and keys: the transformers library rotates column
i of a head with i + width / 2, the GGUF model with its neighbour (convert_hf_to_gguf.py, LlamaModel.permute)."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of the model that an adapter can act on. weights: the parts of it that the graph multiplies by.

    count: above 0 it is a stack of so many matrices, each of rows x columns, one for each expert or head.
    """

    rows: int
    columns: int
    weights: tuple[Weight, ...]
    count: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, self.rows, self.columns) if self.count else (self.rows, self.columns)


@dataclass(frozen=True, eq=False)
class BoundAdapter:
    """An adapter as a backend applies it.

    linear: for each weight that the graph multiplies by, what is added to the product.
    embedding: for each table that the graph looks tokens up in, what is added to a token's row.
    """

    info: AdapterInfo
    linear: Mapping[Weight, LowRank]
    embedding: Mapping[Weight, LowRank]

    def within(self, graph: Graph) -> BoundAdapter | None:
        """What of it acts in a part of the model; None where nothing does."""
        products = {op.weight for op in graph.operations if isinstance(op, Linear | ExpertLinear)}
        tables = {op.table for op in graph.operations if isinstance(op, Embed)}
        linear = {weight: low for weight, low in self.linear.items() if weight in products}
        embedding = {weight: low for weight, low in self.embedding.items() if weight in tables}
        return replace(self, linear=linear, embedding=embedding) if linear or embedding else None


@dataclass(frozen=True, eq=False)
class AdapterBase:
    """What has to be known of a model to tell whether an adapter fits it.

    matrices, tables: by tensor name without ".weight". others: tensors that no adapter can act on -> why.
    heads: of queries and of keys.
    """

    name: str
    architecture: str
    n_layers: int
    heads: tuple[int, int]
    matrices: Mapping[str, Matrix]
    tables: Mapping[str, Matrix]
    others: Mapping[str, str]
    origins: tuple[str, ...]

    @classmethod
    def of(cls, file: GGUFFile, graph: Graph) -> AdapterBase:
        parts: dict[str, list[Weight]] = {}
        stacks: dict[str, Matrix] = {}
        tables: dict[str, Matrix] = {}
        others: dict[str, str] = {}
        embedded: set[Weight] = set()
        for op in graph.operations:
            match op:
                case Embed(table=weight, index=Index.TOKENS):
                    tables[_stem(weight)] = Matrix(weight.rows, weight.columns, (weight,))
                    embedded.add(weight)
                case Linear(weight=weight, heads=1):
                    # an output matrix that is the token table goes by the name it has where it is one of its own
                    name = "output" if weight in embedded else _stem(weight)
                    parts.setdefault(name, []).append(weight)
                case Linear(weight=weight, heads=count) | ExpertLinear(weight=weight, n_experts=count):
                    stacks[_stem(weight)] = Matrix(weight.rows // count, weight.columns, (weight,), count)
        matrices = stacks | {
            name: Matrix(
                max(weight.first + weight.rows for weight in weights),
                weights[0].columns,
                tuple(dict.fromkeys(weights)),
            )
            for name, weights in parts.items()
        }
        for name in file.tensors:
            stem = name.removesuffix(".weight")
            if stem not in matrices and stem not in tables:
                others.setdefault(stem, "is no matrix that the model multiplies by")
        architecture = file.architecture
        return cls(
            name=_text(file, "general.name") or file.path.stem,
            architecture=architecture,
            n_layers=graph.n_layers,
            heads=_heads(file, architecture),
            matrices=matrices,
            tables=tables,
            others=others,
            origins=tuple(
                text
                for key in ("general.name", "general.basename", "general.base_model.0.name", "general.repo_url")
                if (text := _text(file, key))
            ),
        )

    def bind(self, adapter: Adapter) -> BoundAdapter:
        """Matches every matrix of the adapter with one of the model. Raises AdapterError where one does not fit."""
        info = adapter.info
        if info.architecture and info.architecture != self.architecture:
            raise AdapterError(
                f"{info.path.name} is an adapter for the architecture {info.architecture!r:.60}, "
                f"but {self.name} is a {self.architecture} model.",
                "Choose an adapter that was trained on this model.",
            )
        linear: dict[Weight, LowRank] = {}
        embedding: dict[Weight, LowRank] = {}
        shapes = {name: matrix.shape for name, matrix in self.matrices.items()}
        for name, low in self._as_here(adapter, shapes):
            if name in self.tables:
                table = self.tables[name]
                has = (low.a.shape[0], low.b.shape[0]) if low.b.ndim == 2 else low.shape
                self._check_shape(info, name, low, has, table.shape)
                embedding.update(dict.fromkeys(table.weights, low))
                continue
            matrix = self._matrix(info, name)
            self._check_shape(info, name, low, low.shape, matrix.shape)
            if matrix.count:
                linear.update(dict.fromkeys(matrix.weights, low))
                continue
            if adapter.from_peft:
                low = self._permuted(name, low)
            for weight in matrix.weights:
                part = low.b[weight.first : weight.first + weight.rows]
                linear[weight] = low if len(part) == len(low.b) else replace(low, b=np.ascontiguousarray(part))
        return BoundAdapter(replace(info, notes=(*info.notes, *self._notes(info))), linear, embedding)

    def _as_here(self, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, LowRank]]:
        """The adapter's matrices by the names that this model has for them. shapes: of the model's own."""
        for name, low in adapter.matrices.items():
            if name in adapter.parameters:
                yield from fitted(name, low, shapes, self.architecture, adapter.is_swapped).items()
            elif halves := halves_of(name, shapes):
                keys, values = (shapes[half] for half in halves)
                self._check_shape(adapter.info, name, low, low.shape, whole_shape(keys, values))
                yield from zip(halves, by_heads(low, keys[0], keys[2]), strict=True)
            elif adapter.from_peft and name in self.matrices:
                yield name, _with_all_experts(low, self.matrices[name])
            else:
                yield name, low

    def _matrix(self, info: AdapterInfo, name: str) -> Matrix:
        if name in self.matrices:
            return self.matrices[name]
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer and int(layer[1]) >= self.n_layers:
            raise AdapterError(
                f"{info.path.name} acts on layer {layer[1]} ({name!r}), but {self.name} has the layers 0 to "
                f"{self.n_layers - 1}.",
                "Choose an adapter that was trained on this model.",
            )
        if name in self.others:
            raise AdapterError(
                f"{info.path.name} acts on {name!r}, which {self.others[name]} in {self.name}; "
                "Realm applies adapters to matrices of attention, feed-forward layers, experts, output and embedding.",
                MERGE,
            )
        raise AdapterError(
            f"{info.path.name} acts on {name!r}, which {self.name} does not have.",
            "Choose an adapter that was trained on this model.",
        )

    def _check_shape(
        self, info: AdapterInfo, name: str, low: LowRank, has: tuple[int, ...], wanted: tuple[int, ...]
    ) -> None:
        if has != wanted:
            raise AdapterError(
                f"{info.path.name} was made for another model: for {name!r} its matrices {list(low.b.shape)} and "
                f"{list(low.a.shape)} stand for one of {' x '.join(map(str, has))}, but that of {self.name} is "
                f"{' x '.join(map(str, wanted))}.",
                "Choose an adapter that was trained on this model.",
            )

    def _permuted(self, name: str, low: LowRank) -> LowRank:
        """Rows of queries and keys in the order of the GGUF model."""
        kind = name.rpartition(".")[2]
        if self.architecture not in _PERMUTED or kind not in ("attn_q", "attn_k"):
            return low
        heads = self.heads[0 if kind == "attn_q" else 1]
        rows, rank = low.b.shape
        if rows % (2 * heads):
            return low
        b = low.b.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)
        return replace(low, b=np.ascontiguousarray(b))

    def _notes(self, info: AdapterInfo) -> list[str]:
        """What it says of its base, where that does not sound like this model. The shapes all agree."""
        wanted = _words(info.base_model.rstrip("/").rpartition("/")[2])
        if not wanted:
            return []
        known = [_words(origin) for origin in self.origins]
        if any(a in b or b in a for a in [wanted] for b in known if b):
            return []
        return [f"It says that it was trained on {info.base_model}; this model is {self.name}."]


def _with_all_experts(low: LowRank, matrix: Matrix) -> LowRank:
    """With zeros for the experts after the last one that it acts on: a PEFT folder does not say how many there are."""
    missing = matrix.count - len(low.b)
    if low.b.ndim < 3 or missing <= 0:
        return low
    none = ((0, missing), (0, 0), (0, 0))
    return replace(low, a=np.pad(low.a, none), b=np.pad(low.b, none))


def _stem(weight: Weight) -> str:
    return weight.name.removesuffix(".weight")


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _text(file: GGUFFile, key: str) -> str:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else ""


def _heads(file: GGUFFile, architecture: str) -> tuple[int, int]:
    """Heads of queries and keys, for architectures whose rows are permuted (they have as many in every layer)."""

    def number(key: str, default: int) -> int:
        value = file.metadata.get(f"{architecture}.attention.{key}", default)
        if isinstance(value, np.ndarray):
            value = int(value.flat[0]) if value.size else default
        return int(value) if isinstance(value, int) and value > 0 else default

    queries = number("head_count", 1)
    return queries, number("head_count_kv", queries)
