"""The memory of a model on a GPU beside its weights: planned before anything is allocated, within device limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.backends.opencl.gpu_batch import PARTIAL_SLOTS, input_words
from engine.backends.opencl.gpu_top import top_bytes
from engine.backends.opencl.lowering import Cache, Program, padded16, padded32
from engine.backends.opencl.platforms import Device
from engine.backends.opencl.weights import STAGING_BYTES
from engine.batch import KV_BLOCK, MemoryUse
from engine.errors import OutOfMemoryError

LEAST_ROWS = 32

MAX_LOGIT_ROWS = 64

SMALLER = "Choose a smaller model, a shorter context, or the device numpy."


@dataclass(frozen=True)
class Room:
    """rows, logit_rows: most of a step. caches: bytes of each. sizes: bytes of each kind of buffer, "cache" all of the
    caches. positions: tokens that there is room for."""

    rows: int
    logit_rows: int
    caches: Mapping[Cache, int]
    sizes: Mapping[str, int]
    weight_bytes: int
    positions: int

    def memory(self) -> MemoryUse:
        scratch = sum(size for what, size in self.sizes.items() if what != "cache")
        return MemoryUse(self.weight_bytes, self.sizes["cache"], scratch)

    @property
    def wanted(self) -> str:
        """What the model needs, in words."""
        use = self.memory()
        needed = use.total_bytes
        return (
            f"This model needs {needed / 1e9:.2f} GB of memory ({use.weight_bytes / 1e9:.2f} for its weights, "
            f"{use.kv_bytes / 1e9:.2f} for a context of {self.positions} tokens)"
        )


def plan_room(
    program: Program,
    device: Device,
    *,
    weight_bytes: int,
    n_blocks: int,
    kv_type: str,
    rows: int,
    ends_hidden: bool,
) -> Room:
    """rows: of a step, fewer where there is not enough memory for so many.

    Raises OutOfMemoryError where it cannot be.
    """
    limit, total = device.most_in_one_piece, int(device.handle.global_mem_size)
    positions = n_blocks * KV_BLOCK
    caches = {cache: positions * size for cache, size in program.cache_bytes.items()}
    padded = padded16 if kv_type == "f16" else padded32
    partial = max((op.n_heads * (padded(op.v_head_width) + 2) for op in program.attentions), default=0)
    while True:
        row_bytes = program.logit_bytes_per_row
        logit_rows = rows if ends_hidden else max(1, min(MAX_LOGIT_ROWS, limit // row_bytes))
        sizes = {
            "cache": sum(caches.values()),
            "partials": 4 * PARTIAL_SLOTS * partial,
            "scratch": program.scratch_bytes_per_row * rows,
            "logits": row_bytes * logit_rows,
            "top": 0 if ends_hidden else top_bytes(row_bytes // 4, logit_rows),
            "input": 4 * input_words(rows, n_blocks, program.ropes, logit_rows),
        }
        together = weight_bytes + STAGING_BYTES + sum(sizes.values())
        if (sizes["scratch"] <= limit and together <= total) or rows <= LEAST_ROWS:
            break
        rows //= 2
    room = Room(rows, logit_rows, caches, sizes, weight_bytes, positions)
    name = str(device.handle.name).strip()
    largest = max([*caches.values(), *(size for what, size in sizes.items() if what != "cache")])
    if together > total:
        raise OutOfMemoryError(f"{room.wanted}, but {name} has {total / 1e9:.2f} GB.", SMALLER)
    if largest > limit:
        raise OutOfMemoryError(
            f"{room.wanted}; one piece of it takes {largest / 1e9:.2f} GB, "
            f"but {name} allows {limit / 1e9:.2f} GB in one piece.",
            SMALLER,
        )
    return room
