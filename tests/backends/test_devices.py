"""Devices: what is there, and what is said of those that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.api import LoadOptions
from engine.backends.opencl import cpu_choices, platforms, pocl
from engine.backends.opencl.weights import DeviceWeights
from engine.devices import choose_device, list_devices
from engine.errors import DeviceError, OutOfMemoryError
from engine.kept import keep_in
from engine.loader import load_model


def test_the_processor_computes_through_opencl() -> None:
    devices = list_devices()
    assert devices[-1].id == "numpy"
    assert choose_device("auto").id == devices[0].id
    assert choose_device("opencl").variants


def test_unknown_device_names_those_that_exist() -> None:
    with pytest.raises(DeviceError, match=r"no device 'opencl:99'.*numpy"):
        choose_device("opencl:99")


def test_without_a_linker_pocl_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would abort the process; the device says what is missing and auto takes another."""
    if not any("Portable Computing" in d.handle.platform.name for d in platforms.devices()):
        pytest.skip("no PoCL on this machine")
    monkeypatch.setattr("shutil.which", lambda name: None)
    for device in platforms.devices():
        monkeypatch.delitem(device.__dict__, "variants", raising=False)
    listed = [d for d in list_devices() if d.id.startswith("opencl")]
    assert "linker" in listed[0].problem
    assert choose_device("auto").id == "numpy"
    with pytest.raises(DeviceError, match="linker"):
        choose_device("opencl")
    with pytest.raises(DeviceError, match="linker"):
        choose_device(listed[0].id)


def test_devices_are_found_once_however_many_threads_ask() -> None:
    """The window lists devices while the engine loads a model; PoCL is prepared before either goes on."""
    program = (
        "import threading; from engine.backends.opencl.platforms import devices\n"
        "gate = threading.Barrier(8); found = []\n"
        "def ask():\n    gate.wait(); found.append(devices())\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(found) == 8 and all(f is found[0] for f in found), 'not the same devices'\n"
    )
    for _ in range(5):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_finding_out_what_the_processor_has_says_nothing_on_the_terminal() -> None:
    """Compilers complain on stderr, past the build log, about variants that the processor cannot take."""
    program = "from engine.devices import list_devices; assert list_devices()"
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_device_without_room_says_how_much_was_wanted(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was being allocated: weights come before caches and scratch memory."""
    import pyopencl as cl

    def no_room(*_: object) -> None:
        raise cl.MemoryError("clCreateBuffer", -4)

    monkeypatch.setattr(DeviceWeights, "load", no_room)
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    with pytest.raises(OutOfMemoryError, match=r"too little memory.*it needs \d"):
        load_model(path, LoadOptions(device="opencl"), lambda *_: None)


def test_the_youngest_processor_whose_instructions_are_all_there() -> None:
    def target(flags: set[str]) -> str:
        return next(name for name, needed in pocl._TARGETS if needed <= flags)

    avx512 = pocl._TARGETS[0][1] | pocl._TARGETS[1][1]
    assert target(set()) == "x86-64"
    assert target(set(pocl._AVX2)) == "haswell"
    assert target(set(pocl._TARGETS[1][1])) == "skylake-avx512"
    assert target(avx512) == "icelake-server"


_FIRST_LOAD = """
import sys
from pathlib import Path
import numpy as np
from engine.api import LoadOptions
from engine.loader import load_model
from tests.backends.test_streaming import one_sequence
def compiled():
    return sorted(path.name for path in Path(sys.argv[2]).rglob("*.so"))
stages = []
model = load_model(Path(sys.argv[1]), LoadOptions(device="opencl"), lambda *p: stages.append(p), lambda: False).model
before = compiled()
model.forward(one_sequence(np.arange(3, 9, dtype=np.int32)))
assert "run_step.so" in before and compiled() == before, compiled()
assert [f for stage, f, _ in stages if stage == "compiling"] == [0.0, 0.3, 1.0]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the PoCL of the wheels for Linux")
def test_a_first_load_compiles_all_that_steps_need_and_the_compiler_keeps_quiet(
    fixtures_dir: Path, tmp_path: Path
) -> None:
    """The first answer would wait for what is compiled later; a terminal would show what the compiler says."""
    if not any("Portable Computing" in d.handle.platform.name for d in platforms.devices()):
        pytest.skip("no PoCL on this machine")
    model = str(fixtures_dir / "tiny_models" / "llama.gguf")
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_LOAD, model, str(tmp_path)],
        env=os.environ | {"POCL_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_best_variants_are_found_once_for_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = next((d for d in platforms.devices() if d.is_cpu), None)
    if device is None:
        pytest.skip("no OpenCL on this processor")
    best = device.variants
    probed: list[tuple[str, ...]] = []

    def probe(_: platforms.Device, options: tuple[str, ...]) -> str:
        probed.append(options)
        return ""

    monkeypatch.setattr(platforms.Device, "_probe", probe)
    keep_in(tmp_path)
    try:
        assert platforms.Device(0, device.handle).variants == best
        assert probed
        probed.clear()
        assert platforms.Device(0, device.handle).variants == best
        assert not probed
        monkeypatch.setattr(pocl, "processor_flags", lambda: {"avx2"})  # the folder came from another machine
        assert platforms.Device(0, device.handle).variants == best
        assert probed
        probed.clear()
        for file in (tmp_path / "kernels").iterdir():
            file.write_text(file.read_text().replace(best[0].name, "a newer one"))
        assert platforms.Device(0, device.handle).variants == best
        assert probed
    finally:
        keep_in(None)


def test_products_in_pairs_are_chosen_by_measuring_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = next((d for d in platforms.devices() if d.is_cpu), None)
    if device is None or device.variants[0].name != "avx512-vnni":
        pytest.skip("no processor that has both ways")
    monkeypatch.delenv("REALM_KERNEL_VARIANT", raising=False)
    options = [option for variant in device.variants for option in variant.options]
    assert cpu_choices.choose_pairs(device, options) in (True, False)
    for pays in (True, False):
        keep_in(tmp_path / str(pays))
        took = {cpu_choices.ONE_BY_ONE: 1.0, cpu_choices.IN_PAIRS: 0.9 if pays else 1.0}
        try:
            monkeypatch.setattr(cpu_choices, "_seconds", lambda *what, took=took: took[what[-1]])
            assert ("-DREALM_PAIRS" in platforms.Device(0, device.handle).options) == pays
            monkeypatch.setattr(cpu_choices, "_seconds", None)  # asked again, it fails
            assert ("-DREALM_PAIRS" in platforms.Device(0, device.handle).options) == pays
        finally:
            keep_in(None)
