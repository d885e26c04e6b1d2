"""A local server that answers as the model hub does: a redirect with x-linked headers, then a CDN with ranges."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = "someone/some-model-GGUF"
FILE = "some-model.Q4_0.gguf"


@dataclass
class Refusal:
    status: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubServer:
    """What is served, and how it misbehaves. The lists are used up one per request to the CDN."""

    content: bytes
    announced: bytes | None = None  # what the x-linked headers describe, when that differs from the content
    ranges: bool = True
    redirect: bool = True
    linked: bool = True
    content_type: str = "application/octet-stream"
    refusals: list[Refusal] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)
    stall_after: int | None = None
    pause_s: float = 0.0  # between pieces of 64 KiB
    cdn_host: str = "localhost"
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{REPO}/resolve/main/{FILE}"

    def __post_init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):  # clients hang up in the middle, as told
                    server._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.port = self.httpd.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.stopping = threading.Event()
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.stopping.set()
        self.httpd.shutdown()
        self.httpd.server_close()

    def cdn_requests(self) -> list[Request]:
        return [request for request in self.requests if request.path.startswith("/cdn/")]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = handler.headers
        self.requests.append(Request(handler.path, headers.get("Range"), headers.get("Authorization")))
        if handler.path == "/loop":
            self._head(handler, 302, {"Location": "/loop", "Content-Length": "0"})
            return
        announced = self.announced or self.content
        linked = {"X-Linked-Size": str(len(announced)), "X-Linked-Etag": f'"{hashlib.sha256(announced).hexdigest()}"'}
        if not self.linked:
            linked = {}
        if self.redirect and not handler.path.startswith("/cdn/"):
            location = f"http://{self.cdn_host}:{self.port}/cdn/{FILE}?signature=x"
            self._head(handler, 302, {**linked, "Location": location, "Content-Length": "0"})
        elif self.refusals:
            refusal = self.refusals.pop(0)
            self._head(handler, refusal.status, {"Content-Length": "0", **refusal.headers})
        else:
            self._send_file(handler, {} if self.redirect else linked)

    def _send_file(self, handler: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
        total = len(self.content)
        etag = hashlib.md5(self.content).hexdigest()  # as object stores name their files
        headers = {**headers, "ETag": f'"{etag}"', "Content-Type": self.content_type}
        start = 0
        asked = handler.headers.get("Range")
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self._head(handler, 416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        headers["Content-Length"] = str(total - start)
        self._head(handler, 206 if "Content-Range" in headers else 200, headers)
        end = total
        if self.drop_after:
            end = min(total, start + self.drop_after.pop(0))
        for at in range(start, end, 1 << 16):
            if self.stall_after is not None and at >= self.stall_after:
                self.stopping.wait(30)
            handler.wfile.write(self.content[at : min(at + (1 << 16), end)])
            handler.wfile.flush()
            if self.pause_s:
                time.sleep(self.pause_s)
        if end < total:
            handler.close_connection = True

    @staticmethod
    def _head(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
