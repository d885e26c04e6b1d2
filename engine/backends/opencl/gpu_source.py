"""Putting the source of the kernels for GPUs together: for the types and head shapes of one model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.backends.opencl.formats import FORMATS, grid_definition, type_definitions, type_undefinitions
from engine.backends.opencl.source import read
from engine.errors import UnsupportedModelError

TILE_COLUMNS = 64
"""Outputs that one work-group of a tiled matrix product computes, as in simt_arguments.cl."""

STEP_THREADS = 512
"""Work-items of a work-group that runs whole steps."""

MAX_HEAD_WIDTH, MAX_VALUE_WIDTH = 1024, 512


@dataclass(frozen=True)
class HeadShape:
    """What attention kernels are compiled for."""

    width: int
    value_width: int
    single_heads: int  # heads that a work-group takes for a row by itself
    tile_heads: int  # and for a tile of rows

    @classmethod
    def of(cls, heads: int, kv_heads: int, width: int, value_width: int) -> HeadShape:
        """Raises UnsupportedModelError where heads are wider than local memory allows."""
        if width > MAX_HEAD_WIDTH or value_width > MAX_VALUE_WIDTH:
            raise UnsupportedModelError(
                f"This model has attention heads of {width} numbers with values of {value_width}; "
                f"the kernels for GPUs take up to {MAX_HEAD_WIDTH} and {MAX_VALUE_WIDTH}.",
                "Choose the device numpy.",
            )
        group = heads // kv_heads

        def divisor(most: int) -> int:
            return next(n for n in range(min(group, most), 0, -1) if group % n == 0)

        widest = max(width, value_width)
        return cls(width, value_width, divisor(8 if widest <= 256 else 4), divisor(min(32, _tile_queries(widest))))

    @property
    def name(self) -> str:
        return f"{self.width}_{self.value_width}_{self.single_heads}_{self.tile_heads}"

    @property
    def tile_queries(self) -> int:
        """Rows times heads of a tile."""
        return _tile_queries(max(self.width, self.value_width))

    @property
    def on_tensor_cores(self) -> bool:
        """Whether simt_attend_mma.cl takes such heads."""
        return self.width % 16 == 0 and max(self.width, self.value_width) <= 128

    @property
    def tile_rows(self) -> int:
        """Rows that one tile of attention takes."""
        return self.tile_queries // self.tile_heads

    @property
    def definitions(self) -> str:
        return (
            f"#define A(name) name##_{self.name}\n#define HW {self.width}\n#define VW {self.value_width}\n"
            f"#define SINGLE_HEADS {self.single_heads}\n#define TILE_HEADS {self.tile_heads}\n"
            f"#define TILE_QUERIES {self.tile_queries}"
        )


def _tile_queries(widest: int) -> int:
    return 64 if widest <= 128 else 32 if widest <= 256 else 16


_FLOAT_GROUP_BYTES = (
    "static inline long T(group_bytes)(int k) { return ((long)k * 16 * ELEMENT_BYTES + 63) / 64 * 64; }"
)


def repack_source(names: Iterable[str]) -> str:
    """Kernels repack_items_<TYPE>."""
    parts = [read("simt_common.cl"), read("repack_bits.cl")]
    for name in names:
        if FORMATS[name].is_float:
            body = [_FLOAT_GROUP_BYTES, read("repack_float.cl")]
        else:
            body = [read("layout.cl"), read("repack.cl")]
        parts += [type_definitions(name), grid_definition(name), *body, type_undefinitions(name)]
    return "\n".join(parts)


@dataclass(frozen=True)
class KernelSizes:
    """Of work-groups. prepare: work-items that prepare a row together; single: that attend for a lone row; step: that
    run a whole step of one row, 0 where such steps go kernel by kernel. tile_height: down a tile of a product."""

    prepare: int
    single: int
    step: int
    tile_height: int

    @classmethod
    def of(cls, most: int, *, whole_steps: bool) -> KernelSizes:
        """most: work-items that the device takes in a work-group."""
        if whole_steps and most >= STEP_THREADS:
            return cls(STEP_THREADS, STEP_THREADS, STEP_THREADS, 16)
        return cls(256, 128, 0, 16) if most >= 256 else cls(128, 128, 0, 8)


def simt_source(
    names: Iterable[str],
    shapes: Iterable[HeadShape],
    sizes: KernelSizes,
    *,
    experts: bool,
    heads: bool = False,
    tensor_cores: bool = False,
    kv_type: str = "f16",
) -> str:
    """All kernels that a model of these types and head shapes needs on a GPU. heads: adapters may act on matrices of
    single heads. kv_type: of KV_TYPES in engine/api.py."""
    names, shapes = list(names), list(shapes)
    parts = [
        f"#define PREPARE_SIZE {sizes.prepare}\n#define SINGLE_THREADS {sizes.single}",
        f"#define TILE_HEIGHT {sizes.tile_height}\n#define KV_TYPE KV_{kv_type.upper()}",
        f"#define STEP_THREADS {sizes.step}" if sizes.step else "",
        "#define WITH_EXPERTS" if experts else "",
        read("simt_common.cl"),
        read("simt_rows.cl"),
        read("simt_cache.cl"),
        read("simt_lora.cl"),
        read("simt_experts.cl"),
        read("simt_lora_experts.cl") if experts or heads else "",
        read("simt_top.cl"),
        read("simt_arguments.cl"),
        read("simt_tensor.cl") if tensor_cores else "",
        read("simt_op.cl") if sizes.step else "",
    ]
    for name in names:
        body = ["simt_matmul_float.cl"] if FORMATS[name].is_float else ["layout.cl", "simt_matmul.cl"]
        if tensor_cores and not FORMATS[name].is_float:
            body.append("simt_mma.cl")
        parts += [type_definitions(name), *(read(part) for part in body), type_undefinitions(name)]
    for shape in shapes:
        with_mma = read("simt_attend_mma.cl") if tensor_cores and shape.on_tensor_cores else ""
        parts += [shape.definitions, read("simt_attention.cl"), read("simt_attend_tile.cl"), with_mma, _UNDEFINE_SHAPE]
    if sizes.step:
        parts.append(_step_source(names, shapes))
    return "\n".join(parts)


def _step_source(names: list[str], shapes: list[HeadShape]) -> str:
    """The kernel run_step; operations number types and shapes by their places in the lists."""

    def choice(head: str, calls: Iterable[str]) -> str:
        cases = "".join(f"    case {i}: {call}; break;\n" for i, call in enumerate(calls))
        return f"static inline void {head}\n{{\n    switch (op->type) {{\n{cases}    }}\n}}\n"

    attend = "in, op, tile, nth, partials, space"
    room = "\n".join(f"    float shape_{shape.name}[STEP_ATTEND_FLOATS_{shape.name}];" for shape in shapes)
    return "\n".join(
        [
            choice(
                "step_matvec(OpPointer op, int tile, __local float *space)",
                (f"step_matvec_{name}(op, tile, space)" for name in names),
            ),
            choice(
                "step_embed(OpPointer op, int token, int item)",
                (f"step_embed_{name}(op, token, item)" for name in names),
            ),
            choice(
                "step_attend(const __global int *in, OpPointer op, int tile, int nth, "
                "__global float *partials, __local float *space)",
                (f"step_attend_{shape.name}({attend})" for shape in shapes),
            ),
            choice(
                "step_combine(const __global int *in, OpPointer op, int item, int nth, const __global float *partials)",
                (f"step_combine_{shape.name}(in, op, item, nth, partials)" for shape in shapes),
            ),
            f"typedef union {{\n    float others[2 * STEP_THREADS];\n{room}\n}} StepSpace;",
            "#define STEP_FLOATS (sizeof(StepSpace) / 4)",
            read("simt_step.cl"),
        ]
    )


_SHAPE_NAMES = "A HW VW SINGLE_HEADS TILE_HEADS TILE_QUERIES PADDED QUERY_WIDTH THREADS"
_UNDEFINE_SHAPE = "".join(f"#undef {name}\n" for name in _SHAPE_NAMES.split())
