"""One HTTP connection, closed when its header or body is too slow or too long: uvicorn waits for ever."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.settings import Settings

GONE = "gone"
"""In a request's state: a function that tells whether its client has gone away."""


def gone_of(request: Request) -> Callable[[], bool]:
    """Tells whether the request's client has gone away, without waiting."""
    gone: Callable[[], bool] = request.scope.get("state", {}).get(GONE, lambda: False)
    return gone


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with the settings' limits, which the scope's application state holds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._settings: Settings = self.config.app.state.settings  # type: ignore[union-attr]
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._in_header = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self._settings.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_header:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_header and self._header_bytes > self._settings.max_header_bytes:
            self._close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_header = True
        self._wait(self._settings.header_seconds)

    def on_headers_complete(self) -> None:
        self._in_header, self._header_bytes = False, 0
        self._wait(self._settings.body_seconds)
        super().on_headers_complete()
        self.scope["state"][GONE] = self._gone

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._wait(0)
        self._in_header = True

    def _gone(self) -> bool:
        return self.transport.is_closing()

    def _wait(self, seconds: float) -> None:
        """Close the connection unless this is called again within so many seconds; 0 is no limit."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._close) if seconds else None

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
