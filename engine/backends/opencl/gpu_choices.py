"""What is chosen by measuring when a model is loaded on a GPU: kernels for its products, and how steps are run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.backends.opencl.gpu_batch import HEADER_WORDS, LOGIT_ROWS_WORD, ROWS_WORD, Counts
from engine.backends.opencl.gpu_plan import FEW_ROWS, Plan
from engine.backends.opencl.gpu_tuning import Tuner
from engine.backends.opencl.lowering import Step
from engine.batch import Progress

MOST_TIMED = 16
"""Products of one shape that are timed one after the other: weights of their own each, more than caches hold."""

NEVER = 1 << 30
"""Rows of a step that no step has."""

ONE_KERNEL, KERNEL_BY_KERNEL = "one kernel", "kernel by kernel"


def choose_kernels(
    tuner: Tuner, plan: Plan, queue: Any, input_buffer: Any, *, most_rows: int, with_slices: bool, progress: Progress
) -> None:
    """Chooses for each shape of products, the largest first, how many work-items share a row of weights (with_slices)
    and which kernel takes up to 8 rows and up to FEW_ROWS. most_rows: that there is memory for."""
    import pyopencl as cl

    def seconds(sites: list[list[Step]], kernel: str, slices: int, rows: int) -> float:
        header = np.zeros(HEADER_WORDS, np.int32)
        header[[ROWS_WORD, LOGIT_ROWS_WORD]] = rows
        cl.enqueue_copy(queue, input_buffer, header)
        launches = [launch for site in sites[:MOST_TIMED] for launch in plan.products(site, kernel, slices)]
        counts = Counts(rows, rows, 0, 0, 0)

        def run() -> None:
            for launch in launches:
                cl.enqueue_nd_range_kernel(queue, launch.kernel, launch.sizes(counts), launch.local)

        return shortest(queue, run)

    by_shape, choices = plan.products_by_shape(), plan.choices
    for index, (shape, sites) in enumerate(by_shape.items()):
        progress("measuring", 0.9 * index / len(by_shape), f"kernels for {shape}")
        if with_slices:
            usual, most = plan.slices(sites[0]), plan.most_slices(sites[0])
            ways = [usual, *(n for n in (usual // 2, 2 * usual) if 0 < n <= most)]
            way = tuner.choose(
                f"slices of {shape}",
                [str(n) for n in ways],
                lambda way, sites=sites: seconds(sites, "matvec_1", int(way), 1),  # type: ignore[misc]
            )
            choices.slices[shape] = int(way)
        slices = plan.slices(sites[0])
        for rows, kernels in ((8, ("matvec_8", "matmul_1")), (16, ("matmul_1", "matmul_4"))):
            if rows <= most_rows:
                choices.kernels[shape, kernels[0]] = tuner.choose(
                    f"{rows} rows of {shape}",
                    kernels,
                    lambda way, sites=sites, slices=slices, rows=rows: seconds(sites, way, slices, rows),  # type: ignore[misc]
                )


def choose_whole_steps(tuner: Tuner, plan: Plan, seconds: Callable[[bool], float]) -> bool:
    """Whether a step of one row is one kernel; seconds: of such a step, by whether it is."""
    ways = (ONE_KERNEL, KERNEL_BY_KERNEL)
    way = tuner.choose(f"one row of model {_digest(plan)}", ways, lambda way: seconds(way == ONE_KERNEL))
    return way == ONE_KERNEL


def choose_tensor_cores(tuner: Tuner, plan: Plan, seconds: Callable[[], float]) -> int:
    """From how many rows products go through tensor cores, which the plan is told; seconds: of steps that may."""

    def with_rows(way: str) -> float:
        plan.choices.tensor_cores_from = int(way)
        return seconds()

    ways = [str(rows) for rows in (FEW_ROWS + 1, 65, 129, NEVER)]
    rows = int(tuner.choose(f"tensor cores of model {_digest(plan)}", ways, with_rows))
    plan.choices.tensor_cores_from = rows
    return rows


def shortest(queue: Any, run: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some runs."""
    best = float("inf")
    for _ in range(times):
        queue.finish()
        began = time.perf_counter()
        run()
        queue.finish()
        best = min(best, time.perf_counter() - began)
    return best


def _digest(plan: Plan) -> str:
    shapes = [f"{len(sites)} {shape}" for shape, sites in plan.products_by_shape().items()]
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:8]
