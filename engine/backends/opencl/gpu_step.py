"""A step of one row as one kernel launch (cl_kernels/simt_step.cl): its operations as a table in device memory.

Launching a kernel costs more than most of a lone row's operations take. Work-groups that all run at once walk through
the phases of the lowered program instead and wait for each other between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.opencl.formats import FORMATS, GROUP
from engine.backends.opencl.gpu_batch import COMBINES_WORD, LOGIT_ROWS_WORD, SINGLES_WORD, Counts
from engine.backends.opencl.gpu_source import STEP_THREADS, HeadShape
from engine.backends.opencl.lowering import Place, Program, Step

OP = np.dtype(
    [
        *((name, np.int32) for name in (
            "kind", "type", "tiles", "times", "n", "k", "heads", "kv_heads", "head_width", "value_width", "how", "act",
            "gather", "used", "table", "start", "window", "slices", "slice", "out_stride",
        )),
        *((name, np.float32) for name in ("epsilon", "cap", "scale")),
        ("spare", np.int32),
        ("p", np.uint64, 8),
    ]
)  # fmt: skip
"""The struct StepOp of cl_kernels/simt_op.cl."""

KINDS = ("embed", "prepare", "matmul", "store_kv", "attend", "combine", "add", "copy")
"""In the order of OP_* there."""

ONCE = -1
"""In place of the word of the input that counts how often an operation's places come."""


def can_run(program: Program) -> bool:
    """Whether the program has only operations that the kernel knows."""
    kinds = {step.kind for phase in program.phases for step in phase}
    return kinds <= {*KINDS, "lora"} and program.causal


class StepTable:
    """The operations of a program for one row, without those of adapters."""

    def __init__(
        self,
        program: Program,
        *,
        types: Sequence[str],
        shapes: Sequence[HeadShape],
        slices: Callable[[Step], int],
        address: Callable[[Place], int],
    ) -> None:
        """types, shapes: as the kernel numbers them. slices: how many work-items share a row of a product's weights.
        address: where a place lies in device memory; 0 for None."""
        self._types, self._shapes, self._slices, self._address = list(types), list(shapes), slices, address
        ops, starts, hidden = [], [0], 0
        for index, phase in enumerate(program.phases):
            if phase[0].kind != "lora":
                ops += [self._op(step) for step in phase]
                starts.append(len(ops))
            if index < program.hidden_phases:
                hidden = len(starts) - 1
        self.ops: NDArray[Any] = np.array(ops, OP)
        self.phases = np.array(starts, np.int32)
        self.hidden_phases = hidden

    def n_phases(self, *, hidden: bool) -> int:
        return self.hidden_phases if hidden else len(self.phases) - 1

    def _op(self, step: Step) -> tuple[Any, ...]:
        places = list(step.places)
        kind, tiles, times = step.kind, 1, LOGIT_ROWS_WORD if step.logit_rows else ONCE
        n, type_, slices, slice_ = step.n, 0, 1, 1
        if kind == "embed":
            type_ = self._types.index(step.type)
            n = step.k if FORMATS[step.type].is_float else step.k // 32
            tiles = -(-n // STEP_THREADS)
        elif kind == "prepare":
            x, second, quantised, plain, bias = places
            places = [x, second, quantised, plain, bias]
            n = -(-step.k // (4 * STEP_THREADS))
            tiles = n * step.heads
        elif kind == "matmul":
            weight, x, out, bias, residual = places
            places = [x, weight, out, bias, residual]
            type_, slices = self._types.index(step.type), self._slices(step)
            slice_ = -(-step.k // (32 * slices))
            groups = -(-step.n // GROUP)
            tiles = -(-groups // (STEP_THREADS // GROUP // slices))
        elif kind == "store_kv":
            items = max((step.heads + step.kv_heads) * step.head_width // 2, step.kv_heads * step.value_width)
            tiles = -(-items // STEP_THREADS)
        elif kind in ("attend", "combine"):
            shape = HeadShape.of(step.heads, step.kv_heads, step.head_width, step.value_width)
            type_ = self._shapes.index(shape)
            if kind == "attend":
                q, keys, values, out, _, sinks = places
                tiles, times = step.heads // shape.single_heads, SINGLES_WORD
            else:
                _, out, sinks = places
                q = keys = values = None
                tiles, times = -(-step.heads * step.value_width // STEP_THREADS), COMBINES_WORD
            places = [q, keys, values, out, sinks]
        elif kind == "add":
            tiles = -(-step.k // STEP_THREADS)
        else:
            tiles = -(-step.heads * step.k // STEP_THREADS)
        addresses = [self._address(place) for place in places]
        return (
            KINDS.index(kind), type_, tiles, times, n, step.k, step.heads, step.kv_heads, step.head_width,
            step.value_width, step.how, step.act, int(step.gather), step.used, step.table, step.start, step.window,
            slices, slice_, step.out_stride, step.epsilon, step.cap, step.scale, 0,
            addresses + [0] * (8 - len(addresses)),
        )  # fmt: skip


def takes(counts: Counts) -> bool:
    """Whether one kernel can run a step with so much to do."""
    return counts.rows == 1 and counts.logit_rows <= 1 and counts.tiles == 0 and counts.lora.units == 0
