"""One HTTP connection, closed when its header or body is too slow or too long: uvicorn waits for ever."""

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.settings import Settings
from server.web.byte_budget import ByteBudget

IS_DISCONNECTED = "is_disconnected"
"""In a request's state: a function that tells whether its client has gone away."""
MAX_BUFFERED_BYTES = 262_144
"""A body of at most so many is handed on when it is all there; in pieces, each would wake the request's task."""

_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UPGRADE = re.compile(rb"(\r?\n)upgrade:", re.IGNORECASE)


def disconnect_check(scope: Scope) -> Callable[[], bool]:
    """Tells whether the request's client has gone away, without waiting."""
    is_disconnected: Callable[[], bool] = scope["state"].get(IS_DISCONNECTED, lambda: False)
    return is_disconnected


def connection_class(limits: Settings, budget: ByteBudget) -> type["Connection"]:
    """A class of connections with these limits, as uvicorn would have it. bytes_held: by all of them."""

    class Limited(Connection):
        settings, byte_budget = limits, budget

    return Limited


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits."""

    settings: ClassVar[Settings]
    byte_budget: ClassVar[ByteBudget]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_at = math.inf
        self._request_bytes = 0
        self._in_header, self._header_bytes = True, b""
        """Of a header, what has come so far."""
        self._buffers_body = False
        self._buffered_count = 0
        """Bytes of a short body that are held here, and not yet handed on to be counted there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))  # of a stream it is one
        self._set_timeout(self.settings.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._release_buffered()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._request_bytes += len(data)
        if self._in_header:
            if not self._header_bytes:
                self._set_timeout(self.settings.header_seconds)
            previous, self._header_bytes = len(self._header_bytes), self._header_bytes + data
            found = _END_OF_HEADER.search(self._header_bytes, max(previous - 3, 0))
            header_end = found.start() if found else len(self._header_bytes)
            if header_end > self.settings.max_header_bytes:
                self.transport.write(_TOO_LARGE)
                self._close()
                return
            if not found:
                return
            data, self._header_bytes = self._header_bytes, b""
            if data.find(b"pgrade:", 0, header_end) > 0:  # it may be overlooked; the parser would drop the body
                data = _UPGRADE.sub(rb"\1x-upgrade:", data[:header_end]) + data[header_end:]
        elif self._request_bytes > 2 * self.settings.max_body_bytes + self.settings.max_header_bytes:
            self._close()  # the gate has refused the body; this is chunks of a byte or two, or trailers
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_header = True
        self._set_timeout(self.settings.header_seconds)

    def on_headers_complete(self) -> None:
        self._in_header = False
        self._set_timeout(self.settings.body_seconds)
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        self._buffers_body = length.isdigit() and int(length) <= MAX_BUFFERED_BYTES
        super().on_headers_complete()
        self.scope["state"][IS_DISCONNECTED] = self._is_disconnected

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_header:  # nobody reads trailers
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        if self._buffers_body and not self.cycle.response_complete and not self.byte_budget.is_exceeded:
            self.cycle.body += body  # on_message_complete wakes the task
            self._buffered_count += len(body)
            self.byte_budget.reserved += len(body)
        else:
            self._release_buffered()
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._release_buffered()
        super().on_message_complete()
        self._request_bytes = 0
        if not self.pipeline:
            self.flow.resume_reading()  # else it is not seen that a client leaves after a large body
        self._set_timeout(0)
        self._in_header = True

    def _release_buffered(self) -> None:
        """Whoever receives the body counts it from here on."""
        self.byte_budget.reserved -= self._buffered_count
        self._buffered_count = 0

    def _is_disconnected(self) -> bool:
        return self.transport.is_closing()

    def _set_timeout(self, seconds: float) -> None:
        """Close the connection unless this is called again within so many seconds; 0 is no limit.

        A timer that is set early is left to ring, and is then set again: most are overtaken by the next request.
        """
        self._timeout_at = self.loop.time() + seconds if seconds else math.inf
        if self._timer is None and seconds:
            self._timer = self.loop.call_later(seconds, self._on_timer)
        elif self._timer is not None and self._timeout_at < self._timer.when():
            self._timer.cancel()
            self._timer = self.loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        left = self._timeout_at - self.loop.time()
        self._timer = None
        if left <= 0:
            self._close()
        elif left < math.inf:
            self._timer = self.loop.call_later(left, self._on_timer)

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
