"""The quantisation types that the kernels know: one line a type says how its blocks lie in device memory.

cl_kernels/layout.cl explains the layout. Beside these lines, types differ only in how cl_kernels/repack.cl reads the
blocks of a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.quants import QuantType
from engine.quants.codebooks import FP4_VALUES, IQ4_VALUES, grid

GROUP = 16
"""Rows of weights that lie together."""


@dataclass(frozen=True)
class Format:
    """A type as the kernels see it. For integers see layout.cl; floating point has element_bytes > 0 instead.

    codes: what a quant stands for, as in layout.cl. values: for "C_TABLE" and those that a table serves too, the
    numbers that quants of 3 or 4 bits stand for, with `offset` added; otherwise empty.
    factor: of all scales and minima.
    """

    name: str
    bits: int = 0
    super_block: int = 32
    sub_block: int = 32
    scales: str = "S_D"
    offset: int = 0
    codes: str = "C_PLAIN"
    values: tuple[int, ...] = ()
    factor: float = 1.0
    element_bytes: int = 0

    @property
    def is_float(self) -> bool:
        return self.element_bytes > 0

    @property
    def has_minimum(self) -> bool:
        return self.scales in ("S_DM", "S_KM", "S_K4M")

    @property
    def largest_code(self) -> int:
        """The largest number that a quant stands for, with `offset` added."""
        if self.values:
            return max(self.values)
        return ((1 << self.bits) - 1) * (2 if self.codes == "C_TWICE" else 1)

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
            "S_E8M0": 16 * parts,
            "S_UE4M3": 16 * parts,
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


_SIX = (0, -43, -25, -8, 8, 25, 43, 0)
_EIGHTHS = (-9, -7, -1, 1, 7, 9, 0, 0)
_IQ3_XXS = (-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62)
"""The numbers of the lattices of IQ2, IQ1_M and IQ3_XXS in ascending order, so that inverting all bits negates."""


def _biased(values: Sequence[int] | NDArray[np.int8], offset: int) -> tuple[int, ...]:
    return tuple(max(0, int(v) + offset) for v in values)


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
        Format("IQ4_NL", 4, 32, 32, "S_D", 128, "C_TABLE", _biased(IQ4_VALUES, 128)),
        Format("IQ4_XS", 4, 256, 32, "S_K", 128, "C_TABLE", _biased(IQ4_VALUES, 128)),
        Format("MXFP4", 4, 32, 32, "S_E8M0", 12, "C_TABLE", _biased(FP4_VALUES, 12)),
        Format("NVFP4", 4, 64, 16, "S_UE4M3", 12, "C_TABLE", _biased(FP4_VALUES, 12)),
        Format("IQ2_XXS", 3, 256, 32, "S_K", 60, "C_SIX", _biased(_SIX, 60), 1 / 8),
        Format("IQ2_XS", 3, 256, 16, "S_K", 60, "C_SIX", _biased(_SIX, 60), 1 / 8),
        Format("IQ2_S", 3, 256, 16, "S_K", 60, "C_SIX", _biased(_SIX, 60), 1 / 8),
        Format("IQ3_XXS", 4, 256, 32, "S_K", 62, "C_TABLE", _biased(_IQ3_XXS, 62), 1 / 4),
        Format("IQ3_S", 4, 256, 32, "S_K", 15, "C_TWICE"),
        Format("IQ1_S", 2, 256, 32, "S_KM", factor=1 / 8),
        Format("IQ1_M", 3, 256, 16, "S_K", 9, "C_EIGHTHS", _biased(_EIGHTHS, 9), 1 / 8),
        Format("TQ1_0", 2, 256, 32, "S_D", 1),
        Format("TQ2_0", 2, 256, 32, "S_D", 1),
        Format("Q1_0", 1, 128, 32, "S_D", 1, "C_TWICE"),
        Format("Q2_0", 2, 64, 32, "S_D", 1),
    )
}


def type_definitions(name: str) -> str:
    """The #defines that specialise layout.cl and the files after it to one type."""
    f = FORMATS[name]
    lines = [f"#define T(name) name##_{name}"]
    if f.is_float:
        p = f"(const __global {'float' if name == 'F32' else 'ushort'} *)(p)"
        load16, load1 = {
            "F32": (f"load16({p})", f"*({p})"),
            "F16": ("load_half16(p)", "load_half(p)"),
            "BF16": (
                f"load_bf16_16({p})",
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
            f"#define LARGEST_CODE {f.largest_code}",
            f"#define CODES {f.codes}",
            f"#define FACTOR {f.factor}f",
            f"#define SOURCE_{name}",
            f"#define SOURCE_BYTES {source.block_bytes}",
        ]
        if f.values:
            table = np.resize(np.array(f.values, np.uint8), 16)
            lines += [f"#define VALUES {', '.join(map(str, table))}"]
    return "\n".join(lines) + "\n"


def grid_definition(name: str) -> str:
    """The lattice of a type as a table T(grid) for repack.cl: the quants of each point, in words of four."""
    source = {"IQ1_M": "IQ1_S"}.get(name, name)
    quants_of = {
        "IQ2_XXS": {8: 4, 25: 5, 43: 6},
        "IQ2_XS": {8: 4, 25: 5, 43: 6},
        "IQ2_S": {8: 4, 25: 5, 43: 6},
        "IQ3_XXS": {v: i for i, v in enumerate(_IQ3_XXS) if v > 0},
        "IQ3_S": {2 * i + 1: 8 + i for i in range(8)},
        "IQ1_S": {-1: 0, 0: 1, 1: 2},
    }.get(source)
    if quants_of is None:
        return ""
    table = np.zeros(256, np.uint8)
    for value, quant in quants_of.items():
        table[value & 255] = quant
    words = table[grid(source).view(np.uint8)].view("<u4").ravel()
    return f"__constant uint T(grid)[{len(words)}] = {{{', '.join(map(hex, words.tolist()))}}};\n"


_MACROS = [
    "T",
    "BITS",
    "SUPER",
    "SUB",
    "SCALES",
    "OFFSET",
    "LARGEST_CODE",
    "PAIRS",
    "CODES",
    "FACTOR",
    "VALUES",
    "SOURCE_BYTES",
    "BLOCK_BYTES",
    "TWO_GROUPS_LEAST",
    "N_SUB",
    "RECORD_BYTES",
    "UNPACK",
    "UNPACK_BASE",
    "UNPACK_TOP",
    "WORDS16",
    "FETCH_BLOCKS",
    "PARTS",
    "MOST",
    "MULTIPLY_PANELS",
    "PANEL_COLUMNS",
    "PANEL_RESULT",
    "HAS_MINIMUM",
    "WORD_OF_LANE",
    "S_D",
    "S_DM",
    "S_K",
    "S_KM",
    "S_K4M",
    "S_D32",
    "S_E8M0",
    "S_UE4M3",
    "C_PLAIN",
    "C_TWICE",
    "C_SIX",
    "C_EIGHTHS",
    "C_TABLE",
    "UNPACK_CODES",
    "VALUE_OF",
    "D_AT",
    "SECOND_D",
    "EACH_WORD",
    "NIBBLES",
    "FIFTH_BITS",
    "ELEMENT",
    "ELEMENT_BYTES",
    "LOAD16",
    "LOAD1",
]


def type_undefinitions(name: str) -> str:
    return "".join(f"#undef {macro}\n" for macro in [*_MACROS, f"SOURCE_{name}"])
