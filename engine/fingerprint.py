"""What tells a loaded model from another, found out from a few kilobytes of its file."""

from __future__ import annotations

from hashlib import blake2b

from engine.gguf import GGUFFile
from engine.graph import Attention, Graph

SAMPLE_BYTES = 256


def model_fingerprint(file: GGUFFile, graph: Graph) -> str:
    """Two models with the same one compute the same keys and values.

    It covers the file's size, every tensor's name, shape, type and ends, and the rotary frequencies, which may depend
    on the context length. A file of which only the middle of a tensor was changed is not told apart.
    """
    digest = blake2b(str(file.size).encode(), digest_size=16)
    for name, info in file.tensors.items():
        digest.update(f"\n{name} {info.shape} {info.type.name}\n".encode())
        data = file.data(name).reshape(-1)
        digest.update(data[:SAMPLE_BYTES].tobytes() + data[-SAMPLE_BYTES:].tobytes())
    for op in graph.operations:
        if isinstance(op, Attention) and op.rope is not None:
            digest.update(op.rope.frequencies.tobytes() + f"{op.rope.magnitude} {op.rope.interleaved}".encode())
    return digest.hexdigest()
