"""The quantisation types that the kernels know: one line a type says how its blocks lie in device memory.

cl_kernels/layout.cl explains the layout; these lines are the only place where types differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.quants import QuantType

GROUP = 16
"""Rows of weights that lie together."""


@dataclass(frozen=True)
class Format:
    """A type as the kernels see it. For integers see layout.cl; floating point has element_bytes > 0 instead."""

    name: str
    bits: int = 0
    super_block: int = 32
    sub_block: int = 32
    scales: str = "S_D"
    offset: int = 0
    element_bytes: int = 0

    @property
    def is_float(self) -> bool:
        return self.element_bytes > 0

    @property
    def record_bytes(self) -> int:
        parts = self.super_block // self.sub_block
        return {
            "S_D": 32,
            "S_DM": 64,
            "S_K": 16 * parts + 32,
            "S_KM": 32 * parts + 64,
            "S_K4M": 16 * parts + 64,
            "S_D32": 64,
        }[self.scales]

    def group_bytes(self, columns: int) -> int:
        """Bytes of 16 rows, as T(group_bytes) in the kernels has it."""
        if self.is_float:
            size = columns * GROUP * self.element_bytes
        else:
            size = columns // 32 * 64 * self.bits + columns // self.super_block * self.record_bytes
        return -(-size // 64) * 64

    def weight_bytes(self, rows: int, columns: int) -> int:
        return -(-rows // GROUP) * self.group_bytes(columns)


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("F32", element_bytes=4),
        Format("F16", element_bytes=2),
        Format("BF16", element_bytes=2),
        Format("Q4_0", 4, 32, 32, "S_D", 8),
        Format("Q4_1", 4, 32, 32, "S_DM"),
        Format("Q5_0", 5, 32, 32, "S_D", 16),
        Format("Q5_1", 5, 32, 32, "S_DM"),
        Format("Q8_0", 8, 32, 32, "S_D", 128),
        Format("Q8_1", 8, 32, 32, "S_D", 128),
        Format("Q2_K", 2, 256, 16, "S_K4M"),
        Format("Q3_K", 3, 256, 16, "S_K", 4),
        Format("Q4_K", 4, 256, 32, "S_KM"),
        Format("Q5_K", 5, 256, 32, "S_KM"),
        Format("Q6_K", 6, 256, 16, "S_K", 32),
        Format("Q8_K", 8, 256, 32, "S_D32", 128),
    )
}


def type_definitions(name: str) -> str:
    """The #defines that specialise layout.cl and the files after it to one type."""
    f = FORMATS[name]
    lines = [f"#define T(name) name##_{name}"]
    if f.is_float:
        p = f"(const __global {'float' if name == 'F32' else 'ushort'} *)(p)"
        load16, load1 = {
            "F32": (f"vload16(0, {p})", f"*({p})"),
            "F16": ("load_half16(p)", "load_half(p)"),
            "BF16": (
                f"__builtin_astype(__builtin_convertvector(vload16(0, {p}), uint16) << 16, float16)",
                "load_bf16(p)",
            ),
        }[name]
        lines += [
            f"#define ELEMENT {'uint' if f.element_bytes == 4 else 'ushort'}",
            f"#define ELEMENT_BYTES {f.element_bytes}",
            f"#define LOAD16(p) {load16}",
            f"#define LOAD1(p) {load1}",
        ]
    else:
        source = QuantType.by_name(name)
        lines += [
            f"#define BITS {f.bits}",
            f"#define SUPER {f.super_block}",
            f"#define SUB {f.sub_block}",
            f"#define SCALES {f.scales}",
            f"#define OFFSET {f.offset}",
            f"#define SOURCE_{name}",
            f"#define SOURCE_BYTES {source.block_bytes}",
        ]
    return "\n".join(lines) + "\n"


_MACROS = [
    "T",
    "BITS",
    "SUPER",
    "SUB",
    "SCALES",
    "OFFSET",
    "SOURCE_BYTES",
    "BLOCK_BYTES",
    "N_SUB",
    "RECORD_BYTES",
    "UNPACK",
    "UNPACK_BASE",
    "UNPACK_TOP",
    "WORDS16",
    "HAS_MINIMUM",
    "HALF_BYTES",
    "WORD_OF_LANE",
    "S_D",
    "S_DM",
    "S_K",
    "S_KM",
    "S_K4M",
    "S_D32",
    "ELEMENT",
    "ELEMENT_BYTES",
    "LOAD16",
    "LOAD1",
]


def type_undefinitions(name: str) -> str:
    return "".join(f"#undef {macro}\n" for macro in [*_MACROS, f"SOURCE_{name}"])
