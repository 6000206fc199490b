"""One model worker as the serving process sees it: a batch goes out, its answers come back, or it is lost."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from server.ipc import wire
from server.ipc.messages import Task


class WorkerClient(asyncio.Protocol):
    """Speaks with one worker process. `heard` gets each whole message; `lost` is called once, when it is gone."""

    def __init__(
        self, heard: Callable[["WorkerClient", Any], None], lost: Callable[["WorkerClient"], None]
    ) -> None:
        self._heard, self._lost, self._reader = heard, lost, wire.Reader()
        self._transport: asyncio.Transport | None = None
        self.dead = False
        """Lost before anyone could ask it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a stream it is one
        self._transport.set_write_buffer_limits(0)  # uvloop sends at once then, not when all else has had its turn

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._heard(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self)

    def ask(self, tasks: list[Task]) -> None:
        """Hand a batch to the worker."""
        assert self._transport is not None
        self._transport.writelines(wire.pack(tasks))

    def close(self) -> None:
        """Hang up; the worker ends once it is done with what it is at."""
        if self._transport is not None:
            self._transport.close()
