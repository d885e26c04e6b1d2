"""OpenCL devices of this machine and what compiles on them."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from engine.api import DeviceInfo
from engine.backends.opencl import pocl
from engine.backends.opencl.source import read
from engine.errors import DeviceError
from engine.kept import Kept


@dataclass(frozen=True)
class Variant:
    """A way to compile the kernels: preprocessor definitions, and the instructions that it needs, as a condition of
    the preprocessor on the macros with which clang says what the processor has."""

    name: str
    options: tuple[str, ...]
    needs: str = "1"


DOT_VARIANTS = (
    Variant("avx512-vnni", ("-DREALM_DOT_VNNI512",), "defined(__AVX512VNNI__) && defined(__AVX512BW__)"),
    Variant(
        "avx-vnni",
        ("-DREALM_DOT_AVX_VNNI",),
        "defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))",
    ),
    Variant("avx2", ("-DREALM_DOT_AVX2",), "defined(__AVX2__)"),
    Variant("portable", ()),
    # what avx512-vnni does in plain C, for tests: asked for by name only
    Variant("portable-bytes", ("-DREALM_BYTES", "-DREALM_PAIRS")),
)
HALF_VARIANTS = (
    Variant("f16-avx512", ("-DREALM_F16_AVX512",), "defined(__AVX512F__) && defined(__AVX512DQ__)"),
    Variant("f16c", ("-DREALM_F16_F16C",), "defined(__F16C__)"),
    Variant("f16-portable", ()),
)

_PROBE = """
__kernel void probe(__global const int *w, __global int *out, __global float *halves)
{
#ifdef REALM_BYTES
    vstore16(dot4((int16)(3), vload16(0, w), w[16]), 0, out);
#else
    const int16 even = vload16(0, w) & 0x00ff00ff, odd = (vload16(0, w) >> 8) & 0x00ff00ff;
    const char4 x = as_char4(w[16]);
    const int x_even = as_int((short2)(x.s0, x.s2)), x_odd = as_int((short2)(x.s1, x.s3));
    vstore8(dot2(dot2((int8)(3), even.lo, x_even), odd.lo, x_odd), 0, out);
    vstore8(dot2(dot2((int8)(3), even.hi, x_even), odd.hi, x_odd), 1, out);
#endif
    store_half16(load16(halves), halves + 16);
    vstore16(load_half16(halves + 16), 0, halves);
}
"""

SPIN_TURNS = 4000

_LOCK = threading.RLock()
"""Held while devices are found, opened and probed: the window lists them while the engine loads a model."""

T = TypeVar("T")


class _shared_property(cached_property[T]):  # noqa: N801 - used as a decorator, as its base is
    """A cached_property that all threads find the same: since Python 3.12 the standard one may be computed twice."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        with _LOCK:
            return super().__get__(instance, owner)


class Device:
    """An OpenCL device with a context and a queue; built once per process and device."""

    def __init__(self, index: int, handle: Any) -> None:
        import pyopencl as cl

        self.index = index
        self.handle = handle
        self.is_cpu = bool(handle.type & cl.device_type.CPU)
        self.workers = max(1, int(handle.max_compute_units))

    @property
    def executor(self) -> Literal["persistent", "simt"]:
        """How models run here: a step as one kernel that stays (model.py), or as a list of kernels (gpu_model.py).

        The environment variable REALM_EXECUTOR=gpu asks for the latter on CPUs too, which is how it is tested.
        """
        return "persistent" if self.is_cpu and os.environ.get("REALM_EXECUTOR") != "gpu" else "simt"

    @property
    def is_nvidia(self) -> bool:
        return not self.is_cpu and "nvidia" in f"{self.handle.vendor} {self.handle.platform.vendor}".lower()

    @property
    def runs_together(self) -> int:
        """Work-groups that surely run at the same time, so that they may wait for each other; 0 where nobody knows.

        NVIDIA's from Volta on run one for each compute unit at least. A lone one waits for nobody: so it is tested.
        """
        import pyopencl as cl

        if self.is_cpu:
            return 1
        try:
            major = int(self.handle.get_info(cl.device_info.COMPUTE_CAPABILITY_MAJOR_NV)) if self.is_nvidia else 0
        except cl.Error:
            major = 0
        return self.workers if major >= 7 else 0

    @property
    def most_in_one_piece(self) -> int:
        """Bytes that one buffer may have."""
        return int(self.handle.max_mem_alloc_size)

    @property
    def free_memory_bytes(self) -> int:
        """What is free now, where the driver has AMD's way of saying it; else all of it."""
        import pyopencl as cl

        try:
            return 1024 * int(self.handle.get_info(cl.device_info.GLOBAL_FREE_MEMORY_AMD)[0])
        except (cl.Error, AttributeError, TypeError, IndexError):
            return int(self.handle.global_mem_size)

    @_shared_property
    def context(self) -> Any:
        import pyopencl as cl

        return cl.Context([self.handle])

    @_shared_property
    def queue(self) -> Any:
        import pyopencl as cl

        return cl.CommandQueue(self.context)

    @_shared_property
    def variants(self) -> tuple[Variant, Variant]:
        """The best variants that compile here and compute what they should, as found out now or by an earlier start.

        Raises DeviceError if none does.
        """
        forced = os.environ.get("REALM_KERNEL_VARIANT", "")
        reasons: list[str] = []
        problem = pocl.linker_problem() if "Portable Computing" in self.handle.platform.name else ""
        if problem:
            raise DeviceError(problem, "Install them, or choose the device numpy.")

        def first(variants: tuple[Variant, ...], fixed: tuple[str, ...]) -> Variant:
            for variant in variants:
                if forced and variants is DOT_VARIANTS and variant.name != forced:
                    continue
                if not has[variant.name]:
                    reasons.append(f"{variant.name}: this processor lacks its instructions")
                    continue
                reason = self._probe((*variant.options, *fixed))
                if not reason:
                    return variant
                reasons.append(f"{variant.name}: {reason}")
            raise DeviceError(
                f"No variant of Realm's kernels works on {self.handle.name.strip()}. {'; '.join(reasons)}",
                "Update the OpenCL driver, or choose the device numpy.",
            )

        kept = Kept(self._about_variants())
        chosen = {} if forced else kept.read()
        by_name = {variant.name: variant for variant in HALF_VARIANTS + DOT_VARIANTS}
        if chosen.get("dot") in by_name and chosen.get("half") in by_name:
            return by_name[chosen["dot"]], by_name[chosen["half"]]
        has = self._processor_has(HALF_VARIANTS + DOT_VARIANTS)
        half = first(HALF_VARIANTS, ())
        dot = first(DOT_VARIANTS, half.options)
        if not forced:
            kept.write({"dot": dot.name, "half": half.name})
        return dot, half

    def _about_variants(self) -> dict[str, str | int]:
        """What decides which variants are the best."""
        tried = read("common.cl") + _PROBE + repr(HALF_VARIANTS + DOT_VARIANTS)
        return {"variants": hashlib.sha256(tried.encode()).hexdigest()[:16], **self.about}

    @property
    def about(self) -> dict[str, str | int]:
        """What decides how fast something is here."""
        return {
            "device": self.handle.name.strip(),
            "driver": f"{self.handle.platform.name} {self.handle.platform.version} {self.handle.driver_version}",
            "processor": " ".join(sorted(pocl.processor_flags())) if self.is_cpu else "",
        }

    @property
    def options(self) -> list[str]:
        found = [option for variant in self.variants for option in variant.options]
        return [*found, "-DREALM_PAIRS"] if self._in_pairs else found

    @_shared_property
    def _in_pairs(self) -> bool:
        """Whether cl_kernels/panel_pairs.cl is used: measured once, where there is a choice."""
        from engine.backends.opencl.cpu_choices import choose_pairs

        dot, half = self.variants
        if dot.name != "avx512-vnni":
            return False
        # what is asked for by name is all of it
        return bool(os.environ.get("REALM_KERNEL_VARIANT")) or choose_pairs(self, [*dot.options, *half.options])

    @property
    def relax(self) -> str:
        """What a waiting work-group does between two looks; `turns` counts them.

        A wait is short unless the other thread lost its core to some other program. Then going to sleep for a moment
        lets the system move that thread here; spinning on would only keep it waiting.
        """
        x86 = platform.machine() in ("x86_64", "AMD64")
        pause = "__builtin_ia32_pause();" if x86 else "mem_fence(CLK_GLOBAL_MEM_FENCE);"
        if not (x86 and sys.platform == "linux"):
            return pause
        nanosleep = (
            'long nap[2] = {0, 20000}, result; __asm__ volatile("syscall" : "=a"(result) '
            ': "a"(35L), "D"(nap), "S"(0L) : "rcx", "r11", "memory");'
        )
        return f"if (turns < {SPIN_TURNS}) {{ {pause} }} else {{ {nanosleep} }}"

    def build(self, source: str, options: list[str] | None = None) -> Any:
        """Compiles a program, with this device's options unless others are given.

        Raises DeviceError with the first lines of the compiler's complaint.
        """
        import pyopencl as cl

        try:
            # PoCL and GPU drivers cache binaries themselves; pyopencl's own cache does not see a changed processor
            chosen = self.options if options is None else options
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", cl.CompilerWarning)  # notes of a compiler that succeeded
                return cl.Program(self.context, source).build(chosen, cache_dir=False)  # type: ignore[arg-type]
        except cl.Error as error:
            raise DeviceError(
                f"The kernels do not compile on {self.handle.name.strip()}: {first_lines(error)}",
                "Update the OpenCL driver, or choose the device numpy.",
            ) from error

    def _processor_has(self, variants: tuple[Variant, ...]) -> dict[str, bool]:
        """Whether the compiler says that the processor has what each variant needs; of compilers other than clang,
        which do not say, it is assumed.

        Variants are not just tried: PoCL does not remember that something failed to compile, so every start of the
        program would take that long again, and clang writes how many errors there were to the terminal.
        """
        import pyopencl as cl

        lines = [f"#if !defined(__clang__) || ({v.needs})\nhas[{i}] = 1;\n#endif" for i, v in enumerate(variants)]
        source = "__kernel void ask(__global int *has)\n{\n" + "\n".join(lines) + "\n}\n"
        has = np.zeros(len(variants), np.int32)
        try:
            kernel = cl.Kernel(self.build(source, []), "ask")
            buffer = cl.Buffer(self.context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=has)
            kernel(self.queue, (1,), (1,), buffer)
            cl.enqueue_copy(self.queue, has, buffer)
            self.queue.finish()
        except (cl.Error, DeviceError):
            has[:] = 1  # what is wrong with this device the probes will tell
        return {variant.name: bool(has[i]) for i, variant in enumerate(variants)}

    def _probe(self, options: tuple[str, ...]) -> str:
        """Compiles and runs the variant's arithmetic; returns what is wrong, or nothing."""
        import pyopencl as cl

        w = np.array([(7919 * (i + 1) * 104729) & 0xFFFFFFFF for i in range(17)], np.uint32)
        halves = np.linspace(-3, 3, 16, dtype=np.float32).astype(np.float16).astype(np.float32)
        out = np.zeros(16, np.int32)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", cl.CompilerWarning)
                program = cl.Program(self.context, read("common.cl") + _PROBE).build(
                    list(options),
                    cache_dir=False,  # type: ignore[arg-type]
                )
            kernel = cl.Kernel(program, "probe")
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
            buffers = [
                cl.Buffer(self.context, flags, hostbuf=a) for a in (w, out, np.concatenate([halves, 0 * halves]))
            ]
            kernel(self.queue, (1,), (1,), *buffers)
            got = np.empty(16, np.float32)
            cl.enqueue_copy(self.queue, out, buffers[1])
            cl.enqueue_copy(self.queue, got, buffers[2])
            self.queue.finish()
        except cl.Error as error:
            return first_lines(error)
        expected = 3 + w[:16].view(np.uint8).reshape(16, 4).astype(int) @ w[16:].view(np.int8).astype(int)
        if not np.array_equal(out, expected) or not np.array_equal(got, halves):
            return "it compiles but computes wrong results"
        return ""


def devices() -> list[Device]:
    """Every OpenCL device, GPUs by memory first, then others; found once, whichever threads ask."""
    with _LOCK:
        return _find_devices()


@cache
def _find_devices() -> list[Device]:
    pocl.name_host_processor()
    import pyopencl as cl

    handles: list[Any] = []
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        return []
    for found in platforms:
        try:
            handles += found.get_devices()
        except cl.Error:
            continue
    ranked = sorted(handles, key=lambda h: (not h.type & cl.device_type.GPU, -h.global_mem_size))
    return [Device(i, h) for i, h in enumerate(ranked)]


def list_devices() -> list[DeviceInfo]:
    return [describe(device) for device in devices()]


def describe(device: Device) -> DeviceInfo:
    import pyopencl as cl

    handle = device.handle
    kind = "gpu" if handle.type & cl.device_type.GPU else "cpu" if device.is_cpu else "accelerator"
    problem = ""
    variants: tuple[str, ...] = ()
    try:
        if device.executor == "persistent":
            variants = ("persistent", *(v.name for v in device.variants))
        else:
            from engine.backends.opencl.gpu_variants import dot_variant, tensor_variant

            tensors = tensor_variant(device)
            variants = ("simt", dot_variant(device).name, *((tensors.name,) if tensors else ()))
    except DeviceError as error:
        problem = str(error)
    return DeviceInfo(
        id=f"opencl:{device.index}",
        name=handle.name.strip(),
        vendor=handle.vendor.strip(),
        kind=kind,
        driver=f"{handle.platform.name.strip()} {handle.driver_version.strip()}",
        memory_bytes=int(handle.global_mem_size),
        variants=variants,
        problem=problem,
    )


def first_lines(error: Exception, most: int = 300) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
    return " ".join(lines)[:most]
