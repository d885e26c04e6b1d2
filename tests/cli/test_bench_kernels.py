"""`realm bench --kernels` times what it is asked for, and its figures agree with each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.api import DeviceInfo
from engine.devices import choose_device
from engine.measure import KernelCase, KernelTime, Peaks, measure_kernels, other_cases

from .conftest import Realm


@pytest.fixture(autouse=True)
def _small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.measure.kernels.BEYOND_CACHES", 1 << 16)


def test_products_are_timed(realm: Realm) -> None:
    result = realm(
        *("bench", "--kernels", "--types", "Q4_0,q4_k", "--shapes", "64x256,32x96", "--rows", "1,20"),
        *("--device", "numpy", "--json"),
    )

    assert result.code == 0
    kernels = result.json["kernels"]
    # 96 columns are no whole number of Q4_K's blocks
    assert [(k["type"], k["outputs"], k["inputs"], k["rows"]) for k in kernels] == [
        *(("Q4_0", 64, 256, rows) for rows in (1, 20)),
        *(("Q4_0", 32, 96, rows) for rows in (1, 20)),
        *(("Q4_K", 64, 256, rows) for rows in (1, 20)),
    ]
    for k in kernels:
        assert k["gmac_per_s"] * k["seconds"] == pytest.approx(k["rows"] * k["outputs"] * k["inputs"] / 1e9)


def test_the_matrices_of_a_model_are_timed(realm: Realm, tiny_model: Path) -> None:
    result = realm("bench", "--kernels", "--model", tiny_model, "--rows", "2", "--device", "numpy")

    assert result.code == 0
    assert "the limits of this device were not measured" in result.out
    assert any(line.startswith(("F32", "F16", "Q")) for line in result.out.splitlines())


def test_attention_and_norms_are_timed() -> None:
    cases = [case for case in other_cases([1, 3]) if case.inputs == 576 and case.context != 4096]
    assert {case.kernel for case in cases} == {"attention", "norm"}
    seen: list[KernelTime] = []

    times, _ = measure_kernels(cases, _numpy(), seen.append)

    assert times == seen
    assert all(t.seconds > 0 and t.bytes_read > 0 for t in times)


def test_a_share_is_of_the_nearer_limit() -> None:
    time = KernelTime(KernelCase("product", 8, 1000, "Q4_0", 1000), 1e-3, 500_000)  # 0.5 GB/s, 8 GMAC/s
    assert Peaks(1e9, 10e9, 5e9).share(time) == pytest.approx(0.8)
    assert Peaks(0.625e9, None, 5e9).share(time) == pytest.approx(0.8)
    assert Peaks(None, None, None).share(time) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--types", "Q9_9"), "no type"),
        (("--shapes", "4096"), "no shape"),
        (("--rows", "0"), "no numbers of rows"),
        (("--types", "Q4_K", "--shapes", "32x32"), "blocks"),
    ],
)
def test_what_cannot_be_timed_is_refused(realm: Realm, arguments: tuple[str, ...], says: str) -> None:
    result = realm("bench", "--kernels", "--device", "numpy", *arguments)
    assert result.code == 1
    assert says in result.err


def test_nothing_to_measure_is_said(realm: Realm) -> None:
    result = realm("bench")
    assert result.code == 1
    assert "--model" in result.err


def _numpy() -> DeviceInfo:
    return choose_device("numpy")
