"""Model families: what a file's metadata and tensors mean, written as a graph of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.architectures import llama
from engine.errors import UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Graph

ARCHITECTURES: Mapping[str, Callable[[GGUFFile], Graph]] = {"llama": llama.build}
"""general.architecture -> what builds its graph."""


@dataclass(frozen=True)
class Architecture:
    """A model file understood: `graph` is what runs."""

    name: str
    graph: Graph
    trained_context_length: int


def read_architecture(file: GGUFFile) -> Architecture:
    """Builds the graph of a model file.

    Raises UnsupportedModelError for an architecture that is not in the list, and ModelFileError naming the key or
    tensor where the file contradicts itself.
    """
    name = file.architecture
    build = ARCHITECTURES.get(name)
    if build is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"{file.path.name} is a model of the architecture {name!r}, which Realm does not run yet.",
            f"Architectures that work: {known}.",
        )
    context = file.int(f"{name}.context_length", minimum=1, maximum=1 << 30)
    return Architecture(name, build(file), context)
