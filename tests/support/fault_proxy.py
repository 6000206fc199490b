"""An HTTP proxy on loopback that injects faults by a plan and records every request."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

FAULTS = ("500", "503", "refused", "unanswered", "cut", "stalled")
"""500, 503: the server's answer. refused: reset before the server receives it. unanswered: the server runs it, and
the answer is lost. cut: reset in the middle of the answer's body. stalled: its second half never comes."""
STALL_SECONDS = 30
DROPPED = {"connection", "transfer-encoding", "content-length", "keep-alive"}

Plan = Callable[[str, str], str]
"""(method, path) -> a fault, or "" for none."""


class FaultProxy:
    """plan: called for each request. seen: every request as (method, path, fault), in order."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self.plan: Plan = lambda method, path: ""
        self.seen: list[tuple[str, str, str]] = []
        self._stop = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    @contextmanager
    def breaking(self, *faults: str, every: int = 2, only: int | None = None, where: str = "") -> Iterator[None]:
        """Inject the faults in turn, into every n-th request (or number `only`) with `where` in its path."""
        turn, count, lock = itertools.cycle(faults), itertools.count(), threading.Lock()

        def plan(method: str, path: str) -> str:
            if where not in path:
                return ""
            with lock:
                number = next(count)
                struck = number % every == 0 if only is None else number == only
                return next(turn) if struck else ""

        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before

    def asked(self, suffix: str, method: str = "GET") -> list[str]:
        """Requested paths with this suffix, in order, including failed requests."""
        return [path for verb, path, _ in self.seen if verb == method and path.endswith(suffix)]

    def faults(self) -> set[str]:
        return {fault for _, _, fault in self.seen if fault}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        fault = self.proxy.plan(self.command, path)
        self.proxy.seen.append((self.command, path, fault))
        if fault in ("500", "503"):
            self._send(int(fault), [], b"<Error><Code>InternalError</Code><Message>try again</Message></Error>")
            return
        if fault == "refused":
            self._reset()
            return
        connection = HTTPConnection(self.proxy._upstream, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault == "unanswered":
            self._reset()
            return
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in DROPPED]
        length = answer.headers.get("Content-Length") or str(len(data))
        self._send(answer.status, headers, data, length, fault)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if not name.startswith("do_"):
            raise AttributeError(name)
        return self._answer

    def _send(
        self, status: int, headers: list[tuple[str, str]], data: bytes, length: str = "", fault: str = ""
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if fault in ("cut", "stalled"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "stalled":
                self.proxy._stop.wait(STALL_SECONDS)
            else:
                time.sleep(0.02)  # so that the data arrives before the reset
            self._reset()
        else:
            self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the client or the proxy closed the connection
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass
