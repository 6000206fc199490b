"""HTTP connections with size and time limits for header and body, which uvicorn does not have."""

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
"""Key in the request's state: a function that returns whether the client has disconnected."""
MAX_BUFFERED_BYTES = 262_144
"""Bodies up to this size are passed on when complete, since each piece would wake the request's task."""

_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_UPGRADE = re.compile(rb"(\r?\n)upgrade:", re.IGNORECASE)


def disconnect_check(scope: Scope) -> Callable[[], bool]:
    """A function that returns, without waiting, whether the client of this request has disconnected."""
    is_disconnected: Callable[[], bool] = scope["state"].get(IS_DISCONNECTED, lambda: False)
    return is_disconnected


def connection_class(limits: Settings, budget: ByteBudget) -> type["Connection"]:
    """A protocol class for uvicorn with these limits. budget: shared by all connections."""

    class Limited(Connection):
        settings, byte_budget = limits, budget

    return Limited


class Connection(HttpToolsProtocol):
    """uvicorn's httptools protocol with limits from the settings."""

    settings: ClassVar[Settings]
    byte_budget: ClassVar[ByteBudget]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_at = math.inf
        self._request_bytes = 0
        self._in_header, self._header_bytes = True, b""
        """The part of the current header that has been received."""
        self._buffers_body = False
        self._buffered_count = 0
        """Reserved bytes of a short body that has not been passed on to the middleware."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))  # TCP transports are asyncio.Transport
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
            # A server may ignore an upgrade request. The header is renamed, since the parser would drop the body.
            if data.find(b"pgrade:", 0, header_end) > 0:
                data = _UPGRADE.sub(rb"\1x-upgrade:", data[:header_end]) + data[header_end:]
        elif self._request_bytes > 2 * self.settings.max_body_bytes + self.settings.max_header_bytes:
            self._close()  # beyond the body limit: tiny chunks or long trailers
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
        if self._in_header:  # trailers are ignored
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        if self._buffers_body and not self.cycle.response_complete and not self.byte_budget.is_exceeded:
            self.cycle.body += body  # on_message_complete will wake the task
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
            self.flow.resume_reading()  # otherwise a disconnect after a large body is not noticed
        self._set_timeout(0)
        self._in_header = True

    def _release_buffered(self) -> None:
        """Release the bytes reserved here; the middleware reserves what it receives."""
        self.byte_budget.reserved -= self._buffered_count
        self._buffered_count = 0

    def _is_disconnected(self) -> bool:
        return self.transport.is_closing()

    def _set_timeout(self, seconds: float) -> None:
        """Close the connection after `seconds` unless this is called again before; 0 removes the timeout.

        If the new timeout is later, the pending timer stays and is rescheduled when it fires. This is cheaper,
        since the next request replaces most timeouts.
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
