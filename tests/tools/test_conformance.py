"""The report comes out whatever it meets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from engine.errors import UnsupportedModelError
from tests.tools.conformance.__main__ import report
from tests.tools.conformance.architectures import compare_architectures
from tests.tools.conformance.real import compare_real_models, real_models
from tests.tools.conformance.table import Section, attempt, nmse, number
from tests.tools.conformance.text import compare_templates, compare_tokenizers
from tests.tools.conformance.types import compare_types


def raising(error: Exception) -> str:
    raise error


def test_a_section_counts_and_marks() -> None:
    section = Section("T", "Text.", ("A", "B"))
    section.rows.append(("x", section.judged("good", "1", True)))
    section.rows.append(("y|z", section.judged("bad", "2", False)))
    section.rows.append(("s", attempt(section, "sentence", lambda: raising(UnsupportedModelError("Not yet.")))))
    section.rows.append(("e", attempt(section, "defect", lambda: raising(KeyError("k")))))

    text = section.markdown()

    assert (section.passed, section.total, section.missed) == (1, 3, ["bad", "defect"])
    assert "| x | 1 |" in text
    assert "| y\\|z | **2** |" in text
    assert "| s | Not yet. |" in text
    assert "| e | **KeyError: 'k'** |" in text
    assert "Out of bounds: bad, defect." in text


def test_numbers() -> None:
    assert nmse([1, 2], [1, 2]) == 0
    assert nmse(np.array([2.0]), np.array([1.0])) == 1
    assert [number(x) for x in (0.0, 3.2e-7, 0.0152, 1.5, math.nan)] == ["0", "3.2e-07", "0.0152", "1.5", "–"]


def test_without_reference_data_each_section_says_so(tmp_path: Path) -> None:
    models = real_models(tmp_path, [tmp_path], tmp_path)
    sections = [
        compare_types(tmp_path),
        compare_architectures(tmp_path, print),
        compare_tokenizers(tmp_path, models),
        compare_templates(tmp_path),
        compare_real_models(tmp_path, models, lambda _: True, print),
    ]
    assert models == {}
    assert report(sections).count("Nothing to compare with was found.") == 5


def test_damaged_and_unknown_models_get_their_sentence(tmp_path: Path, fixtures_dir: Path) -> None:
    folder = tmp_path / "tiny_models"
    folder.mkdir()
    data = (fixtures_dir / "tiny_models" / "llama.gguf").read_bytes()
    key = b"general.architecture"
    at = data.index(key) + len(key) + 4 + 8
    (folder / "unknown.gguf").write_bytes(data[:at] + b"ollam" + data[at + 5 :])
    (folder / "unknown.npz").write_bytes((fixtures_dir / "tiny_models" / "llama.npz").read_bytes())

    section = compare_architectures(tmp_path, lambda _: None)

    assert len(section.rows) == 1
    assert "ollam" in section.rows[0][3]
    assert not section.missed
