"""The step's kernel for processors that this machine is not, with each type of cache, by clang's OpenCL front end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.api import KV_TYPES
from engine.backends.opencl.source import step_source
from tests.backends.test_gpu_model import _clang

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]
TARGETS = {
    "x86-avx512": [*("-target", "x86_64-linux-gnu"), *AVX512, "-DREALM_DOT_VNNI512", "-DREALM_F16_AVX512"],
    "x86-avx2": ["-target", "x86_64-linux-gnu", "-mavx2", "-mfma", "-mf16c", "-DREALM_DOT_AVX2", "-DREALM_F16_F16C"],
    "arm64": ["-target", "aarch64-linux-gnu"],
}


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_the_step_compiles_for_other_processors(tmp_path: Path, target: str, kv_type: str) -> None:
    path = tmp_path / "step.cl"
    path.write_text(step_source(["Q4_K", "Q6_K", "F16"], "", 128, kv_type, "Q6_K"))
    command = [
        *(_clang(), "-x", "cl", "-cl-std=CL1.2", "-Xclang", "-finclude-default-header", "-fsyntax-only"),
        *("-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable", *TARGETS[target], str(path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
