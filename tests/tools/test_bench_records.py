"""What became slower is said until it is mended or accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tools.bench_records import Setting, compare_and_record

SETTING = Setting("a processor", 2, "a device", "a driver", "avx2", "a model")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALM_CACHE_DIR", str(tmp_path))


def test_the_first_run_has_nothing_to_compare_with() -> None:
    assert compare_and_record(SETTING, {"decode": 100.0}) == []


def test_a_slower_rate_is_marked_until_it_is_accepted() -> None:
    compare_and_record(SETTING, {"decode": 100.0, "prefill": 50.0})
    for _ in range(2):
        decode, prefill = compare_and_record(SETTING, {"decode": 89.0, "prefill": 51.0})
        assert decode.is_slower
        assert "SLOWER" in str(decode)
        assert not prefill.is_slower
    assert compare_and_record(SETTING, {"decode": 89.0}, accept=True)[0].is_slower
    assert not compare_and_record(SETTING, {"decode": 85.0})[0].is_slower
    # what one run left out is still known
    assert compare_and_record(SETTING, {"prefill": 51.0})[0].before == 51.0


def test_other_settings_have_records_of_their_own() -> None:
    compare_and_record(SETTING, {"decode": 100.0})
    assert compare_and_record(replace(SETTING, driver="a newer driver"), {"decode": 10.0}) == []


@pytest.mark.parametrize("content", ["", "[]", '{"rates": {"decode": {"rate": "fast"}}}', '{"rates": 3}'])
def test_a_damaged_record_counts_as_none(content: str) -> None:
    SETTING.path.parent.mkdir(parents=True)
    SETTING.path.write_text(content, encoding="utf-8")
    assert compare_and_record(SETTING, {"decode": 10.0}) == []
    assert compare_and_record(SETTING, {"decode": 10.0})[0].factor == 1.0
