"""Putting the source of the kernels for GPUs together: for the types and head shapes of one model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.backends.opencl.formats import FORMATS, grid_definition, type_definitions, type_undefinitions
from engine.backends.opencl.source import read
from engine.errors import UnsupportedModelError

TILE_COLUMNS = 64
"""Outputs that one work-group of a tiled matrix product computes, as in simt_arguments.cl."""

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


def simt_source(
    names: Iterable[str],
    shapes: Iterable[HeadShape],
    *,
    experts: bool,
    prepare_size: int,
    tile_height: int,
    mma: bool = False,
) -> str:
    """All kernels that a model of these types and head shapes needs on a GPU."""
    parts = [
        f"#define PREPARE_SIZE {prepare_size}\n#define TILE_HEIGHT {tile_height}",
        "#define WITH_EXPERTS" if experts else "",
        read("simt_common.cl"),
        read("simt_rows.cl"),
        read("simt_lora.cl"),
        read("simt_experts.cl"),
        read("simt_arguments.cl"),
        read("simt_tensor.cl") if mma else "",
    ]
    for name in names:
        body = (
            ("simt_matmul_float.cl",)
            if FORMATS[name].is_float
            else ("layout.cl", "simt_matmul.cl", *(["simt_mma.cl"] if mma else []))
        )
        parts += [type_definitions(name), *(read(part) for part in body), type_undefinitions(name)]
    for shape in shapes:
        with_mma = read("simt_attend_mma.cl") if mma and shape.on_tensor_cores else ""
        parts += [shape.definitions, read("simt_attention.cl"), with_mma, _UNDEFINE_SHAPE]
    return "\n".join(parts)


_UNDEFINE_SHAPE = "".join(
    f"#undef {name}\n" for name in ("A", "HW", "VW", "SINGLE_HEADS", "TILE_HEADS", "TILE_QUERIES", "PADDED", "THREADS")
)
