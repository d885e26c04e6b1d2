"""One GET request whose waiting can be ended at any moment.

The standard library's client blocks in connect and read. Here a thread of its own does the blocking and hands over
pieces through a short queue, so that a cancel or a deadline takes effect at once; a thread left behind ends by itself
at its socket's time-out.
"""

from __future__ import annotations

import contextlib
import email.message
import functools
import http.client
import queue
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import certifi

from engine.errors import DownloadError

CHUNK = 1 << 18
MAX_REDIRECTS = 8
SOCKET_TIMEOUT_S = 30.0
_POLL_S = 0.1
_AUTH = "Authorization"


class DownloadCancelled(DownloadError):
    """The person, or the program's end, stopped the download; what was fetched stays for the next try."""

    def __init__(self) -> None:
        super().__init__("The download was stopped.")


class TransferError(Exception):
    """The connection could not be made, or broke: says why in a few words. Worth another try."""


def check_cancelled(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise DownloadCancelled


def wait(seconds: float, cancel: threading.Event | None) -> None:
    """Sleep, unless cancelled: then DownloadCancelled."""
    if cancel is None:
        time.sleep(seconds)
    else:
        cancel.wait(seconds)
        check_cancelled(cancel)


@dataclass(frozen=True)
class _Head:
    status: int
    headers: email.message.Message


class _End:
    pass


class Reply:
    """The answer to one GET. `linked` holds the x-* headers of redirects on the way, names in lower case.

    status and headers are the last hop's; `chunks()` yields the body.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], head_timeout: float, cancel: threading.Event | None
    ) -> None:
        self.url = url
        self.linked: dict[str, str] = {}
        self._cancel = cancel
        self._items: queue.Queue[_Head | bytes | _End | Exception] = queue.Queue(maxsize=8)
        self._closed = threading.Event()
        request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - open_url checked the scheme
        threading.Thread(target=self._receive, args=(request,), name="download", daemon=True).start()
        head = self._take(head_timeout)
        if not isinstance(head, _Head):
            raise TransferError("the server closed the connection")
        self.status = head.status
        self.headers = head.headers

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces as they arrive. It may end early without an error: compare with the length."""
        while True:
            item = self._take(SOCKET_TIMEOUT_S + 5)
            if not isinstance(item, bytes):
                return
            yield item

    def close(self) -> None:
        self._closed.set()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, timeout: float) -> _Head | bytes | _End:
        deadline = time.monotonic() + timeout
        while True:
            try:
                item = self._items.get(timeout=_POLL_S)
            except queue.Empty:
                item = None
            if self._cancel is not None and self._cancel.is_set():
                self.close()
                raise DownloadCancelled
            if isinstance(item, Exception):
                raise TransferError(_reason(item)) from item
            if item is not None:
                return item
            if time.monotonic() > deadline:
                self.close()
                raise TransferError(f"no answer within {timeout:.0f} seconds")

    def _receive(self, request: urllib.request.Request) -> None:
        try:
            with _open(request) as response:
                self._put(_Head(response.status, response.headers))
                while chunk := response.read1(CHUNK):
                    if not self._put(chunk):
                        return
            self._put(_End())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._put(error)

    def _put(self, item: _Head | bytes | _End | Exception) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_POLL_S)
                return True
        return False


def open_url(
    url: str, headers: Mapping[str, str], *, head_timeout: float, cancel: threading.Event | None = None
) -> Reply:
    """GET `url`, following redirects. The Authorization header goes to the first host only.

    Raises TransferError when a connection cannot be made, DownloadError for an address that must not be followed.
    """
    origin = _origin(url)
    linked: dict[str, str] = {}
    sent = dict(headers)
    for _ in range(MAX_REDIRECTS + 1):
        scheme = urllib.parse.urlsplit(url).scheme
        if scheme not in ("http", "https"):
            raise DownloadError(f"The address {url} is neither http nor https.")
        reply = Reply(url, sent, head_timeout, cancel)
        if reply.status not in (301, 302, 303, 307, 308) or not reply.headers.get("Location"):
            reply.linked = linked
            return reply
        reply.close()
        linked.update({name.lower(): value for name, value in reply.headers.items() if name.lower().startswith("x-")})
        url = urllib.parse.urljoin(url, reply.headers["Location"])
        if scheme == "https" and not url.startswith("https:"):
            raise DownloadError(f"The server redirects from https to the unprotected address {url}.")
        if _origin(url) != origin:
            sent.pop(_AUTH, None)
    raise DownloadError(f"The server redirects in circles: more than {MAX_REDIRECTS} times, last to {url}.")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by open_url, which sees their headers."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


@functools.cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # The system's certificates count (companies add their own); some Pythons come without any, so certifi's count too.
    context.load_verify_locations(certifi.where())
    return context


def _open(request: urllib.request.Request) -> Any:
    """The response, whatever its status. Proxies come from the environment."""
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=_tls_context()))
    try:
        return opener.open(request, timeout=SOCKET_TIMEOUT_S)
    except urllib.error.HTTPError as response:
        return response


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate could not be verified ({cause.verify_message})"
    if isinstance(cause, TimeoutError):
        return "it did not answer in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror[0].lower() + cause.strerror[1:]
    return str(cause) or type(cause).__name__
