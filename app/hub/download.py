"""Fetch one file over HTTP so that nothing short of the whole, right file ever appears under its name.

Bytes go to `NAME.part` (with `NAME.part.json` saying what they are part of), which a later call resumes; the finished
file is checked for size and SHA-256 and then renamed. A lock keeps two processes off the same file.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from app.hub.http import Reply, TransferError, check_cancelled, open_url, wait
from app.hub.verification import hash_file, is_verified, record_verified
from engine.errors import DownloadError

Progress = Callable[[int, int], None]
"""progress(bytes done, bytes in all)."""

_PROGRESS_INTERVAL_S = 0.05
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class ServerUnreachable(DownloadError):
    """No connection could be made at all: no network, no such host, or a firewall in between."""


@dataclass(frozen=True)
class Retry:
    """When to try again. Delays double from `first_delay_s` up to `max_delay_s`; `attempts` counts failures in a row
    without a single new byte."""

    attempts: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 15.0
    contact_timeout_s: float = 6.0  # for the first answer; later ones get four times as long
    max_retry_after_s: float = 90.0  # longer waits asked for by a server are left to the person

    def delay_s(self, failures: int) -> float:
        delay = min(self.max_delay_s, self.first_delay_s * 2.0 ** (failures - 1))
        return delay * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, guards no secret


def download(
    url: str,
    destination: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    retry: Retry | None = None,
) -> Path:
    """Fetch `url` to `destination` and return it; at once when the file is there and verified.

    size, sha256: what the file must be; where not given, what the hub's headers say of it.
    Raises ServerUnreachable, DownloadCancelled, or DownloadError with what went wrong and what to do.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(destination, cancel):
            if not is_verified(destination, size, sha256, cancel):
                _Transfer(url, destination, size, sha256, token, progress, cancel, retry or Retry()).run()
    except OSError as error:
        raise disk_error(error, destination) from error
    if progress is not None:
        whole = destination.stat().st_size
        progress(whole, whole)
    return destination


@contextlib.contextmanager
def exclusive(destination: Path, cancel: threading.Event | None) -> Iterator[None]:
    """Hold the lock of one destination, waiting for whoever has it."""
    lock = filelock.FileLock(destination.with_name(f".{destination.name}.lock"))
    while True:
        check_cancelled(cancel)
        try:
            lock.acquire(timeout=0.2)
            break
        except filelock.Timeout:
            continue
    try:
        yield
    finally:
        lock.release()


def disk_error(error: OSError, destination: Path) -> DownloadError:
    """What an operating system's error means for the person who waits for `destination`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(destination, None)
    return DownloadError(
        f"{destination} could not be written: {error.strerror or error}.",
        "Check the folder's permissions, or choose another one with REALM_DATA_DIR.",
    )


def _disk_full(destination: Path, wanted: int | None) -> DownloadError:
    free = shutil.disk_usage(destination.parent).free
    more = f" {_megabytes(wanted)} are still to come and" if wanted else ""
    return DownloadError(
        f"The disk is full:{more} {_megabytes(free)} are free in {destination.parent}.",
        "Make room, or move the data folder with REALM_DATA_DIR; the download goes on where it stopped.",
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


class _StartOver(Exception):
    """What lies in the .part file belongs to something else."""


class _ServerBusy(TransferError):
    def __init__(self, reason: str, retry_after_s: float | None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass
class _Transfer:
    url: str
    destination: Path
    expected_size: int | None
    expected_sha256: str | None
    token: str | None
    progress: Progress | None
    cancel: threading.Event | None
    retry: Retry

    def __post_init__(self) -> None:
        self.part = self.destination.with_name(self.destination.name + ".part")
        self.note = self.destination.with_name(self.destination.name + ".part.json")
        self.host = self.url.split("/")[2] if "://" in self.url else self.url
        self.size, self.sha256 = self.expected_size, self.expected_sha256  # with what the server's headers added
        self.digest: Any = None  # SHA-256 of the .part file's first `digested` bytes
        self.digested = 0
        self.pieced = False  # the .part file was begun by an earlier attempt
        self.contacted = False
        self.last_progress = 0.0

    def run(self) -> None:
        for last_chance in (False, True):
            self._fetch()
            if self._finish(last_chance):
                return

    def _fetch(self) -> None:
        """Attempts until the .part file has its full length."""
        failures = restarts = 0
        while True:
            before = self._part_size()
            try:
                self._attempt()
                return
            except _StartOver as reason:
                self._discard_part()
                restarts += 1
                if restarts > 2:
                    raise DownloadError(
                        f"{self.host} changes its answer while {self.destination.name} is fetched ({reason}).",
                        "Try again later.",
                    ) from None
            except TransferError as error:
                if not self.contacted:
                    raise ServerUnreachable(
                        f"{self.host} could not be reached: {error}.",
                        "Check the network connection, the proxy settings (HTTPS_PROXY) and HF_ENDPOINT.",
                    ) from error
                failures = failures + 1 if self._part_size() <= before else 1
                if failures >= self.retry.attempts:
                    raise DownloadError(
                        f"{self.destination.name} could not be fetched from {self.host}: {error} "
                        f"({failures} tries in a row).",
                        "Try again later; the download goes on where it stopped.",
                    ) from error
                self._pause(error, failures)

    def _pause(self, error: TransferError, failures: int) -> None:
        delay = self.retry.delay_s(failures)
        if isinstance(error, _ServerBusy) and error.retry_after_s is not None:
            if error.retry_after_s > self.retry.max_retry_after_s:
                raise DownloadError(
                    f"{self.host} {error} and asks to wait {error.retry_after_s:.0f} seconds.",
                    "Try again after that; logging in to the hub (HF_TOKEN) raises its limits.",
                ) from error
            delay = max(delay, error.retry_after_s)
        wait(delay, self.cancel)

    def _attempt(self) -> None:
        self.size, self.sha256 = self.expected_size, self.expected_sha256
        offset = self._resumable_bytes()
        if self.size is not None and offset == self.size:
            return
        headers = {"User-Agent": "realm-desktop", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        timeout = self.retry.contact_timeout_s * (4 if self.contacted else 1)
        with open_url(self.url, headers, head_timeout=timeout, cancel=self.cancel) as reply:
            self.contacted = True
            start, total = self._read_head(reply, offset)
            if start < total:
                self._receive(reply, start, total)

    def _read_head(self, reply: Reply, offset: int) -> tuple[int, int]:
        """Where the body starts in the file, and the file's length; raises for every other answer."""
        status, headers = reply.status, reply.headers
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if match is None or match[1] is None or match[3] == "*" or int(match[1]) != offset:
                raise _StartOver("another range than asked for")
            start, total = offset, int(match[3])
        elif status == 200:
            start = 0  # also when a range was asked for: such a server does not know ranges
            total = self._length_of_whole(reply)
        elif status == 416:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if match is None or match[3] == "*" or int(match[3]) != offset:
                raise _StartOver("the file there is shorter than what was fetched")
            start = total = offset
        else:
            raise self._refusal(reply)
        if start and _etag(reply) != self._noted().get("etag"):
            raise _StartOver("another version of the file")
        self._check_length(total, headers.get_content_type())
        if self.sha256 is None and _SHA256.fullmatch(_linked_etag(reply)):
            self.sha256 = _linked_etag(reply)
        self.size = total
        return start, total

    def _length_of_whole(self, reply: Reply) -> int:
        for value in (reply.headers.get("Content-Length"), reply.linked.get("x-linked-size")):
            if value is not None and value.isdigit():
                return int(value)
        raise DownloadError(f"{self.host} does not say how long {self.destination.name} is.", "Try again later.")

    def _check_length(self, total: int, content_type: str) -> None:
        if total == 0:
            raise DownloadError(f"{self.host} offers an empty file as {self.destination.name}.", "Try again later.")
        if self.size is None or total == self.size:
            return
        page = " a web page," if content_type == "text/html" else ""
        raise DownloadError(
            f"{self.host} offers{page} {total:,} bytes as {self.destination.name}, where {self.size:,} are expected.",
            "The file there is another one, or a network login page stands in between.",
        )

    def _refusal(self, reply: Reply) -> Exception:
        status = reply.status
        name = self.destination.name
        code = reply.headers.get("X-Error-Code", "")
        if status in (408, 425, 429) or status >= 500:
            reason = "limits how often it may be asked (429)" if status == 429 else f"has trouble (status {status})"
            return _ServerBusy(reason, _retry_after(reply.headers.get("Retry-After")))
        if code == "GatedRepo":
            return DownloadError(
                f"{self.host} gives {name} only to people who accepted its terms.",
                "Accept them on the model's page, then log in with `hf auth login` or set HF_TOKEN.",
            )
        if status in (401, 403):
            return DownloadError(
                f"{self.host} refuses to give {name} (status {status}): the model is private, gated or does not exist.",
                "Check its name; if it is right, log in with `hf auth login` or set HF_TOKEN.",
            )
        if status in (404, 410):
            return DownloadError(f"{self.host} has no file at {self.url}.", "Check the model's name and the file's.")
        return DownloadError(f"{self.host} answered with status {status} for {name}.", "Try again later.")

    def _receive(self, reply: Reply, start: int, total: int) -> None:
        if start == 0:
            self._discard_part()
        if total - start > shutil.disk_usage(self.part.parent).free:
            raise _disk_full(self.destination, total - start)
        if start == 0:
            self.note.write_text(json.dumps({"url": self.url, "etag": _etag(reply), "size": total}), encoding="utf-8")
        else:
            self.pieced = True
        if self.digest is None or self.digested != start:
            self.digest = hash_file(self.part, start, self.cancel) if start else hashlib.sha256()
            self.digested = start
        with self.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            self._report(start, total)
            for chunk in reply.chunks():
                if self.digested + len(chunk) > total:
                    raise _StartOver("more bytes than announced")
                file.write(chunk)
                self.digest.update(chunk)
                self.digested += len(chunk)
                self._report(self.digested, total)
            file.flush()
            os.fsync(file.fileno())
        if self.digested < total:
            raise TransferError(f"the connection ended after {self.digested:,} of {total:,} bytes")

    def _finish(self, last_chance: bool) -> bool:
        """Check the .part file and give it its name. False when it is wrong and a fetch from the start may mend it."""
        if self.digest is None or self.digested != self._part_size():
            self.digest = hash_file(self.part, cancel=self.cancel)
            self.pieced = True
        found = self.digest.hexdigest()
        if self.sha256 is not None and found != self.sha256:
            mendable = self.pieced and not last_chance
            self._discard_part()
            if mendable:
                return False
            raise DownloadError(
                f"{self.destination.name} arrived with other content than announced: its SHA-256 is {found}, "
                f"expected was {self.sha256}.",
                "It was deleted. Try again; if that repeats, the source is not to be trusted.",
            )
        self.part.replace(self.destination)
        self.note.unlink(missing_ok=True)
        record_verified(self.destination, found)
        return True

    def _report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.progress is not None and now - self.last_progress >= _PROGRESS_INTERVAL_S:
            self.last_progress = now
            self.progress(done, total)

    def _part_size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _resumable_bytes(self) -> int:
        """Bytes of the .part file worth keeping: those of the same address, no more than the file can have."""
        have, noted = self._part_size(), self._noted()
        if have == 0 or noted.get("url") != self.url:
            return 0
        size = self.size if self.size is not None else noted.get("size")
        return have if isinstance(size, int) and have <= size else 0

    def _noted(self) -> dict[str, Any]:
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _discard_part(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.digest, self.digested, self.pieced = None, 0, False


def _etag(reply: Reply) -> str:
    """What names this version of the file: the hub's own tag where it gives one, else the last server's."""
    return _linked_etag(reply) or reply.headers.get("ETag", "").removeprefix("W/").strip('"')


def _linked_etag(reply: Reply) -> str:
    """The hub's tag of the stored file, sent with its redirect: the SHA-256 of files in large file storage."""
    value = reply.linked.get("x-linked-etag") or reply.headers.get("X-Linked-Etag") or ""
    return value.removeprefix("W/").strip('"').lower()


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
