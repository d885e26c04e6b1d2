"""A model with adapters, stepped without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapters import AdapterBase, read_adapter
from engine.adapters.runs import AdapterSet
from engine.architectures import read_architecture
from engine.batch import KV_BLOCK, Batch
from engine.gguf import GGUFFile
from engine.placement import choose_places, place_all


class Running:
    """A model on a device, or on two, and the adapters that it holds by path."""

    def __init__(self, model_path: Path, device: str, n_blocks: int = 128) -> None:
        self.file = GGUFFile.open(model_path)
        graph = read_architecture(self.file).graph
        self.base = AdapterBase.of(self.file, graph)
        places = choose_places(device, graph)
        self.model: Any = place_all(self.file, places, n_blocks, "f16", lambda *_: None, lambda: False)
        self._numbers: dict[Path, int] = {}

    def uses(self, pairs: Sequence[tuple[Path, float]]) -> AdapterSet:
        for path, _ in pairs:
            if path not in self._numbers:
                self._numbers[path] = self.model.add_adapter(self.base.bind(read_adapter(path)))
        return tuple((self._numbers[path], strength) for path, strength in pairs)

    def logits(
        self, sequences: Sequence[Sequence[int]], adapters: Sequence[AdapterSet], wanted: int
    ) -> list[NDArray[np.float32]]:
        """The logits of the last `wanted` tokens of each sequence, all run as one batch."""
        blocks = -(-max(len(tokens) for tokens in sequences) // KV_BLOCK)
        lengths = [len(tokens) for tokens in sequences]
        ends = np.cumsum(lengths)
        batch = Batch(
            tokens=np.concatenate([np.asarray(tokens, np.int32) for tokens in sequences]),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            sequences=np.repeat(np.arange(len(sequences)), lengths).astype(np.int32),
            block_tables=np.arange(blocks * len(sequences), dtype=np.int32).reshape(len(sequences), blocks),
            logit_rows=np.concatenate(
                [np.arange(max(end - wanted, end - n), end) for end, n in zip(ends, lengths, strict=True)]
            ).astype(np.int32),
            adapters=tuple(adapters),
        )
        out = self.model.forward(batch).copy()
        counts = [min(wanted, n) for n in lengths]
        return np.split(out, np.cumsum(counts)[:-1])

    def close(self) -> None:
        self.model.close()
        self.file.close()


def check_sums(model: Path, whole: Path, device: str, paths: Sequence[Path]) -> None:
    """Each of the adapters makes of the model what `whole` is, a file with the sums of both, and without one it is
    something else."""
    prompt = np.load(model.with_suffix(".npz"))["prompt"].tolist()[:40]
    reference, running = Running(whole, "numpy"), Running(model, device)
    (expected,) = reference.logits([prompt], [()], 40)
    sets = [running.uses([(path, 1.0)]) for path in paths]
    base, *got = running.logits([prompt] * (1 + len(sets)), [(), *sets], 40)
    power = (expected.astype(np.float64) ** 2).sum()
    for logits in got:
        assert ((logits - expected) ** 2).sum() / power < (1e-9 if device == "numpy" else 5e-5)
    assert ((base - expected) ** 2).sum() / power > 1e-3
    reference.close()
    running.close()
