"""Putting the kernels' source together for a device and the types of one model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from itertools import product

from engine.backends.opencl.formats import FORMATS, grid_definition, type_definitions, type_undefinitions


@cache
def read(name: str) -> str:
    return (files("cl_kernels") / name).read_text(encoding="utf-8")


def repack_source(names: Iterable[str]) -> str:
    """Kernels repack_<TYPE> for the types."""
    parts = [read("common.cl"), read("repack_bits.cl")]
    for name in names:
        body = ("matmul_float.cl", "repack_float.cl") if FORMATS[name].is_float else ("layout.cl", "repack.cl")
        body_source = (read(part) for part in body)
        parts += [type_definitions(name), grid_definition(name), *body_source, type_undefinitions(name)]
    return "\n".join(parts)


def tools_source(names: Iterable[str]) -> str:
    """Kernels repack_<TYPE> for the types, and those of tools.cl and lora_pack.cl."""
    return "\n".join((repack_source(names), read("lora_pack.cl"), read("tools.cl")))


def panels_source() -> list[str]:
    """Products of many rows, for activations as bytes and as words; of the former, one for each kind of tile."""
    tiles = []
    for values in product((1, 2), (4, 8), (1, 2), (0, 1)):
        names = ("GROUPS", "TILE", "PARTS", "MINIMUM")
        suffix = "_".join(map(str, values))
        tiles.append(f"#define P(name) name##_{suffix}")
        tiles += [f"#define {name} {value}" for name, value in zip(names, values, strict=True)]
        tiles += [read("panel_tile.cl"), *(f"#undef {name}" for name in ("P", *names))]
    return [
        read("panel.cl"),
        "#ifdef REALM_BYTES",
        *tiles,
        read("panel_bytes.cl"),
        read("panel_pairs.cl"),
        "#else",
        read("panel_words.cl"),
        "#endif",
    ]


def step_source(names: Iterable[str], relax: str, max_width: int, kv_type: str, bounded: str = "") -> str:
    """The kernel `run_step` for the types, in the order in which operations number them.

    relax: a statement for waiting; max_width: of the widest attention head, padded to 32;
    kv_type: of KV_TYPES in engine/api.py. bounded: the type whose product may give bounds of the logits, if any.
    """
    names = list(names)
    parts = [read("common.cl"), read("prepare.cl"), *panels_source()]
    for name in names:
        body = ("matmul_float.cl",) if FORMATS[name].is_float else ("layout.cl", "matmul.cl")
        parts += [
            type_definitions(name),
            *(read(part) for part in body),
            read("matmul_rows.cl"),
            *([read("bounds.cl")] if name == bounded else []),
            type_undefinitions(name),
        ]

    multiply = "".join(f"    case {i}: matmul_rows_{name}(w, first, last, p); break;\n" for i, name in enumerate(names))
    embed = "".join(f"    case {i}: expand_row_{name}(w, row, k, out); break;\n" for i, name in enumerate(names))
    parts.append(
        "static void matmul_rows(int type, const __global uchar *w, int first, int last, const Product *p)\n"
        f"{{\n    switch (type) {{\n{multiply}    }}\n}}\n"
        "static void embed_row(int type, const __global uchar *w, int row, int k, __global float *out)\n"
        f"{{\n    switch (type) {{\n{embed}    }}\n}}\n"
        f"#define MAX_WIDTH {max_width}\n#define KV_TYPE KV_{kv_type.upper()}\n"
        f"static inline void relax(int turns)\n{{\n    {relax}\n}}\n"
    )
    block = read("attend_block.cl" if kv_type == "f16" else "attend_codes.cl")
    blocks = [
        f"#if {n} <= DIRECT\n#define N {n}\n#define B(name) name##_{n}\n{block}\n#undef N\n#undef B\n#endif\n"
        for n in range(1, 9)
    ]
    parts += [
        read("cache.cl"),
        read("attention.cl"),
        *([] if kv_type == "f16" else [read("codes.cl")]),
        *blocks,
        read("attend_tile.cl"),
        read("experts.cl"),
        read("lora.cl"),
        read("lora_experts.cl"),
        read("top.cl"),
        read("step.cl"),
        read("run_step.cl"),
    ]
    return "\n".join(parts)
