"""Session files: what was saved comes back, and nothing else ever does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.sessions import Identity, read_session, write_session

IDENTITY = Identity("model", "layout 1", 40)
KEYS = [bytes([n]) * 16 for n in range(6)]
DATA = np.random.default_rng(1).integers(0, 256, (6, 40)).astype(np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.session"
    assert write_session(path, IDENTITY, KEYS, 0, DATA)
    return path


def test_what_was_saved_comes_back(file: Path) -> None:
    for first in range(7):
        restored = read_session(file, IDENTITY, KEYS, first)
        assert not restored.note
        assert restored.first == first
        np.testing.assert_array_equal(restored.data, DATA[first:])
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_chat_that_goes_on_extends_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat.session"
    assert write_session(path, IDENTITY, KEYS[:2], 0, DATA[:2])
    assert write_session(path, IDENTITY, KEYS, 2, DATA[2:])
    np.testing.assert_array_equal(read_session(path, IDENTITY, KEYS, 0).data, DATA)
    other = [*KEYS[:3], b"x" * 16]
    assert write_session(path, IDENTITY, other, 3, DATA[:1])
    assert len(read_session(path, IDENTITY, KEYS, 0).data) == 3
    np.testing.assert_array_equal(read_session(path, IDENTITY, other, 0).data, [*DATA[:3], DATA[0]])
    assert [entry.name for entry in path.parent.iterdir()] == ["chat.session"]


def test_a_file_that_lost_its_beginning_is_not_extended(file: Path) -> None:
    assert not write_session(file, IDENTITY, [b"y" * 16, *KEYS[1:]], 3, DATA[3:])
    file.write_bytes(b"something else")
    assert not write_session(file, IDENTITY, KEYS, 3, DATA[3:])
    with pytest.raises(FileExistsError, match="no session"):
        write_session(file, IDENTITY, KEYS, 0, DATA)
    assert file.read_bytes() == b"something else"
    file.unlink()
    assert not write_session(file, IDENTITY, KEYS, 3, DATA[3:])
    assert write_session(file, IDENTITY, KEYS, 0, DATA)


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (Identity("another", "layout 1", 40), "another model"),
        (Identity("model", "layout 2", 40), "another kind"),
        (Identity("model", "layout 1", 48), "another kind"),
    ],
)
def test_a_foreign_file_is_not_used(file: Path, identity: Identity, words: str) -> None:
    restored = read_session(file, identity, KEYS, 0)
    assert not len(restored.data)
    assert words in restored.note


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_what_is_no_ordinary_file_is_left_alone(file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    identity = Identity("model", "layout 1", 40)
    assert "no ordinary file" in read_session(pipe, identity, KEYS, 0).note
    with pytest.raises(FileExistsError):
        write_session(pipe, identity, KEYS[:1], 0, np.zeros((1, 40), np.uint8))
    assert pipe.is_fifo()


def test_another_chat_is_not_used_and_said(file: Path) -> None:
    restored = read_session(file, IDENTITY, [b"z" * 16], 0)
    assert not len(restored.data)
    assert "another chat" in restored.note


def test_no_file_is_nothing_to_speak_of(tmp_path: Path) -> None:
    restored = read_session(tmp_path / "none", IDENTITY, KEYS, 0)
    assert (len(restored.data), restored.note) == (0, "")
    assert "no ordinary file" in read_session(tmp_path, IDENTITY, KEYS, 0).note


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_costs_blocks_but_never_gives_wrong_ones(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "damaged.session"
    path.unlink(missing_ok=True)
    write_session(path, IDENTITY, KEYS, 0, DATA)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path.write_bytes(content[:cut] + bytes(data.draw(st.integers(0, 9))))
    restored = read_session(path, IDENTITY, KEYS, 0)
    np.testing.assert_array_equal(restored.data, DATA[: len(restored.data)])


@pytest.mark.parametrize("header", [b"[]", b"{}", b"nonsense", b"\xff", b"1" * 70000])
def test_odd_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    from hashlib import blake2b

    path = tmp_path / "odd.session"
    digest = blake2b(header, digest_size=16).digest()
    path.write_bytes(b"REALMKV1" + len(header).to_bytes(4, "little") + header + digest)
    assert read_session(path, IDENTITY, KEYS, 0).note
