"""Making PoCL work on processors that are younger than the compiler inside it.

PoCL asks its LLVM for the name of the host processor and builds every kernel for that name. The PoCL wheel for Linux
carries LLVM 14, which knows nothing after 2021: on an AMD Zen 5 it answers "generic", which its own OpenCL front end
then refuses ("unknown target CPU 'generic'"), and on a Zen 4 it answers "znver3" and leaves AVX-512 unused. The
processor itself tells the kernel which instructions it has, so we name the youngest processor that LLVM knows and
whose instructions are all there. PoCL has no setting for it; `pocl_get_llvm_cpu_name`, an exported function, is
redirected to a copy of that name before the first OpenCL call of the process.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import platform
import shutil
import sys
from pathlib import Path

log = logging.getLogger(__name__)

# LLVM's names, best first, with the instructions (as Linux calls them) that code for each may use.
_AVX2 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "adx", "clflushopt", "clwb", "pku"}
_ICELAKE = (_AVX512 - {"pku"}) | {
    "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "avx512ifma", "gfni", "vaes",
    "vpclmulqdq", "sha_ni", "rdpid",
}  # fmt: skip
_TARGETS = (
    ("icelake-server", _ICELAKE),
    ("skylake-avx512", _AVX512 - {"pku"}),
    ("haswell", _AVX2),
    ("x86-64", set[str]()),
)

_OUTDATED = (b"generic", b"znver3", b"znver2", b"")
"""What LLVM 14 says of processors that can do more than it knows, or that it does not know."""


def name_host_processor() -> None:
    """Tells the bundled PoCL what the processor can do, where it would not know. Call before the first OpenCL call.

    Does nothing on other systems, without a bundled PoCL, or where LLVM knows the processor.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return
    library = _bundled_library()
    if library is None:
        return
    try:
        function = ctypes.CDLL(str(library)).pocl_get_llvm_cpu_name
    except (OSError, AttributeError):
        return
    function.restype = ctypes.c_char_p
    known = function() or b""
    if known not in _OUTDATED:
        return
    flags = processor_flags()
    target = next(name for name, needed in _TARGETS if needed <= flags)
    if known != b"generic" and target == "haswell":
        return  # LLVM's own name tunes better for the same instructions
    _redirect(ctypes.cast(function, ctypes.c_void_p).value or 0, target.encode())
    log.info("PoCL takes this processor for %r; kernels are built for %s.", known.decode(), target)


def linker_problem() -> str:
    """What is missing for PoCL to link a kernel, as a sentence, or nothing.

    PoCL hands its object files to the system's linker, together with gcc's own library and the C library, and aborts
    the whole process where it cannot.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or _bundled_library() is None:
        return ""
    has_gcc = any(path for folder in _GCC_FOLDERS for path in Path(folder).glob("x86_64*/*/crtbegin.o"))
    if shutil.which("ld") and has_gcc and any(Path(name).exists() for name in _C_LIBRARIES):
        return ""
    return "PoCL needs a linker and the C library's development files, which this system lacks (Debian: gcc libc6-dev)."


def _bundled_library() -> Path | None:
    """The libpocl that the wheel put beside pyopencl."""
    import pyopencl

    found = sorted((Path(pyopencl.__file__).parent / ".libs").glob("libpocl*.so*"))
    return found[0] if found else None


def processor_flags() -> set[str]:
    """The instructions that this processor has, by Linux's names for them; elsewhere none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


_GCC_FOLDERS = ("/usr/lib/gcc", "/usr/lib64/gcc")
_C_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/libc.so", "/usr/lib64/libc.so", "/usr/lib/libc.so")

_names: list[int] = []
"""Copies of names that the redirected function goes on reading; they live as long as the process."""


def _redirect(address: int, name: bytes) -> None:
    """Overwrites the function at `address` with `return strdup(name);`. Its caller frees what it gets."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.strdup.restype = ctypes.c_void_p
    text = int(libc.strdup(name))
    _names.append(text)
    strdup = ctypes.cast(libc.strdup, ctypes.c_void_p).value or 0
    code = (
        b"\x48\xbf" + text.to_bytes(8, "little")  # mov rdi, text
        + b"\x48\xb8" + strdup.to_bytes(8, "little")  # mov rax, strdup
        + b"\xff\xe0"  # jmp rax
    )  # fmt: skip
    page = address & -mmap.PAGESIZE
    length = address + len(code) - page
    read, write, execute = 1, 2, 4
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(page, length, read | write | execute) != 0:
        log.warning("The name of the processor could not be passed to PoCL (errno %d).", ctypes.get_errno())
        return
    ctypes.memmove(address, code, len(code))
    libc.mprotect(page, length, read | execute)
