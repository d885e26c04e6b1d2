"""Whatever the server, the network or the disk does: the right whole file under its name, or none and a sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.hub.download import Retry, ServerUnreachable, download
from app.hub.http import DownloadCancelled
from app.hub.verification import recorded_sha256
from engine.errors import DownloadError
from tests.hub.hub_server import Refusal


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def leave_part(target: Path, url: str, data: bytes, *, etag: str, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part_of(target).write_bytes(data)
    note = target.with_name(target.name + ".part.json")
    note.write_text(json.dumps({"url": url, "etag": etag, "size": size}))


def names(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")}


def test_fetches_through_the_redirect_and_verifies(serve, target, content, quick):
    server = serve()
    seen: list[tuple[int, int]] = []
    path = download(server.url, target, progress=lambda done, total: seen.append((done, total)), retry=quick)
    assert path == target
    assert target.read_bytes() == content
    assert seen[-1] == (len(content), len(content))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert names(target) == {target.name, target.name + ".verified"}
    assert recorded_sha256(target) == sha(content)


def test_a_verified_file_is_not_asked_for_again(serve, target, content, quick):
    server = serve()
    download(server.url, target, size=len(content), sha256=sha(content), retry=quick)
    before = len(server.requests)
    download(server.url, target, size=len(content), sha256=sha(content), retry=quick)
    assert len(server.requests) == before


def test_a_file_that_changed_since_it_was_verified_is_fetched_anew(serve, target, content, quick):
    server = serve()
    download(server.url, target, size=len(content), sha256=sha(content), retry=quick)
    target.write_bytes(b"x" * len(content))
    download(server.url, target, size=len(content), sha256=sha(content), retry=quick)
    assert target.read_bytes() == content


def test_without_linked_headers_a_plain_file_server_is_enough(serve, target, content, quick):
    server = serve(redirect=False, linked=False)
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(serve, target, quick):
    server = serve()
    download(server.url, target, token="hf_secret", retry=quick)
    assert [request.authorization for request in server.requests] == ["Bearer hf_secret", None]


def test_drops_in_the_middle_are_resumed_where_they_happened(serve, target, content, quick):
    server = serve(drop_after=[200_000, 300_000])
    download(server.url, target, sha256=sha(content), retry=quick)
    assert target.read_bytes() == content
    assert [request.range for request in server.cdn_requests()] == [None, "bytes=200000-", "bytes=500000-"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=st.lists(st.integers(1, 400_000), max_size=6))
def test_any_pattern_of_drops_ends_in_the_same_bytes(serve, tmp_path_factory, content, quick, drops):
    target = tmp_path_factory.mktemp("drops") / "m.gguf"
    download(serve(drop_after=list(drops)).url, target, sha256=sha(content), retry=quick)
    assert target.read_bytes() == content


def test_drops_without_any_progress_end_after_some_tries(serve, target, quick):
    server = serve(drop_after=[100_000] + [0] * 50)
    with pytest.raises(DownloadError, match="4 tries in a row"):
        download(server.url, target, retry=quick)
    assert not target.exists()
    assert part_of(target).stat().st_size == 100_000


def test_a_server_without_ranges_starts_from_the_beginning(serve, target, content, quick):
    server = serve(ranges=False, drop_after=[200_000])
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content


def test_resumes_what_an_earlier_process_left(serve, target, content, quick):
    server = serve()
    leave_part(target, server.url, content[:700_000], etag=sha(content), size=len(content))
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content
    assert [request.range for request in server.cdn_requests()] == ["bytes=700000-"]


def test_a_complete_part_needs_no_server(target, content, quick):
    url = "http://127.0.0.1:9/never-asked"
    leave_part(target, url, content, etag="e", size=len(content))
    download(url, target, size=len(content), sha256=sha(content), retry=quick)
    assert target.read_bytes() == content


def test_a_complete_part_of_unknown_size_is_confirmed_by_416(serve, target, content, quick):
    server = serve()
    leave_part(target, server.url, content, etag=sha(content), size=len(content))
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content


def test_a_part_of_another_version_is_thrown_away(serve, target, content, quick):
    server = serve()
    leave_part(target, server.url, b"old" * 1000, etag="another", size=len(content))
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content


def test_a_damaged_part_is_found_by_its_hash_and_fetched_anew(serve, target, content, quick):
    server = serve()
    leave_part(target, server.url, b"\0" * 500_000, etag=sha(content), size=len(content))
    download(server.url, target, sha256=sha(content), retry=quick)
    assert target.read_bytes() == content


def test_a_damaged_complete_part_is_fetched_anew(serve, target, content, quick):
    server = serve()
    leave_part(target, server.url, b"\0" * len(content), etag=sha(content), size=len(content))
    download(server.url, target, size=len(content), sha256=sha(content), retry=quick)
    assert target.read_bytes() == content


def test_a_part_longer_than_the_file_is_thrown_away(serve, target, content, quick):
    server = serve()
    leave_part(target, server.url, content + b"more", etag=sha(content), size=len(content) + 4)
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content


@pytest.mark.parametrize("known", [True, False])
def test_wrong_content_is_refused_and_deleted(serve, target, content, quick, known):
    """Known beforehand, or from the hub's own header: the CDN's bytes must hash to it."""
    wrong = bytes(reversed(content))
    server = serve(content=wrong, announced=content)
    with pytest.raises(DownloadError, match="SHA-256"):
        download(server.url, target, sha256=sha(content) if known else None, retry=quick)
    assert names(target) == set()


def test_truncated_content_is_refused(serve, target, content, quick):
    server = serve(content=content[:-1], announced=content)
    with pytest.raises(DownloadError, match="1,000,002 bytes"):
        download(server.url, target, size=len(content), retry=quick)
    assert not target.exists()


def test_a_login_page_in_between_is_named(serve, target, content, quick):
    server = serve(content=b"<html>Welcome to the hotel</html>", content_type="text/html", redirect=False, linked=False)
    with pytest.raises(DownloadError, match="web page") as caught:
        download(server.url, target, size=len(content), sha256=sha(content), retry=quick)
    assert "login page" in caught.value.hint


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (Refusal(401), "private, gated or does not exist"),
        (Refusal(403), "HF_TOKEN"),
        (Refusal(403, {"X-Error-Code": "GatedRepo"}), "accepted its terms"),
        (Refusal(404), "no file"),
        (Refusal(400), "status 400"),
        (Refusal(429, {"Retry-After": "3600"}), "3600 seconds"),
    ],
)
def test_refusals_are_sentences(serve, target, quick, refusal, says):
    server = serve(refusals=[refusal] * 20)
    with pytest.raises(DownloadError, match=says):
        download(server.url, target, retry=quick)
    assert len(server.cdn_requests()) == 1
    assert names(target) == set()


def test_a_busy_server_is_asked_again_after_the_time_it_names(serve, target, content, quick):
    server = serve(refusals=[Refusal(429, {"Retry-After": "1"}), Refusal(503)])
    began = time.monotonic()
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content
    assert time.monotonic() - began >= 1.0


def test_a_busy_server_is_not_asked_forever(serve, target, quick):
    server = serve(refusals=[Refusal(503)] * 50)
    with pytest.raises(DownloadError, match="status 503"):
        download(server.url, target, retry=quick)
    assert len(server.cdn_requests()) == quick.attempts


def test_redirects_in_circles_end(serve, target, quick):
    with pytest.raises(DownloadError, match="in circles"):
        download(f"{serve().endpoint}/loop", target, retry=quick)


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_other_schemes_are_refused(target, quick, scheme):
    with pytest.raises(DownloadError, match="neither http nor https"):
        download(f"{scheme}:///etc/hostname", target, retry=quick)


def test_no_server_fails_fast(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="could not be reached"):
        download(f"http://127.0.0.1:{port}/x", target)
    assert time.monotonic() - began < 5


def test_a_silent_server_fails_fast(target):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(ServerUnreachable, match="no answer within 1 seconds"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/x", target, retry=Retry(contact_timeout_s=1.0))
        assert time.monotonic() - began < 5


def test_cancel_takes_effect_while_the_server_is_silent(serve, target, content):
    server = serve(stall_after=300_000)
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(DownloadCancelled):
        download(server.url, target, cancel=cancel)
    assert time.monotonic() - began < 5
    assert not target.exists()
    kept = part_of(target).read_bytes()
    assert kept
    assert content.startswith(kept)


def test_a_full_disk_is_a_sentence_and_keeps_what_was_fetched(serve, target, content, quick, monkeypatch):
    server = serve(drop_after=[400_000])

    class Usage:
        total, used, free = 10**9, 10**9, 10

    real = __import__("shutil").disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage if part_of(target).exists() else real(path))
    with pytest.raises(DownloadError, match="The disk is full: 0.6 MB are still to come"):
        download(server.url, target, retry=quick)
    assert part_of(target).stat().st_size == 400_000
    monkeypatch.setattr("shutil.disk_usage", real)
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content


def test_a_disk_that_fills_while_writing_is_a_sentence(serve, target, quick, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match="The disk is full"):
        download(serve().url, target, retry=quick)
    assert not target.exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(serve, tmp_path, quick):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="could not be written"):
        download(serve().url, tmp_path / "file" / "model.gguf", retry=quick)


CHILD = """
import sys
from pathlib import Path
from app.hub.download import download
download(sys.argv[1], Path(sys.argv[2]), progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_a_killed_download_leaves_a_part_that_the_next_one_goes_on_with(serve, target, content, quick):
    server = serve(pause_s=0.1)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url, str(target)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    while int(child.stdout.readline() or b"1000000") < 300_000:
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not target.exists()
    kept = part_of(target).read_bytes()
    assert 300_000 <= len(kept) < len(content)
    assert content.startswith(kept)
    server.pause_s = 0
    download(server.url, target, retry=quick)
    assert target.read_bytes() == content
    assert server.cdn_requests()[-1].range == f"bytes={len(kept)}-"


def _download_in_process(url: str, target: str) -> None:
    download(url, Path(target))


def test_two_processes_fetch_a_file_once(serve, target, content):
    server = serve(pause_s=0.02)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_download_in_process, args=(server.url, str(target))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert target.read_bytes() == content
    assert len(server.cdn_requests()) == 1
