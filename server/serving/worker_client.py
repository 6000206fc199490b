"""The serving process's view of one worker process: its connection, state and current batch."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any, cast

from server.ipc import wire
from server.ipc.messages import ModelInfo, TaskResult, WorkerReady
from server.serving.job_queue import Job


class WorkerState(Enum):
    """States of a worker, in the order in which it has them; IDLE and BUSY alternate."""

    STARTING = auto()
    """Its first message has not arrived yet."""
    IDLE = auto()
    BUSY = auto()
    """It computes a batch."""
    CLOSING = auto()
    """Its connection is closed or lost."""


class WorkerClient(asyncio.Protocol):
    """One worker process.

    on_results: called with this worker, the jobs of a finished batch, and their results.
    on_disconnect: called once if a worker that was ready exits or is closed; `jobs` is its unfinished batch.
    """

    def __init__(
        self,
        on_results: Callable[["WorkerClient", list[Job], list[TaskResult]], None],
        on_disconnect: Callable[["WorkerClient"], None],
    ) -> None:
        self._on_results, self._on_disconnect = on_results, on_disconnect
        self.state = WorkerState.STARTING
        self.pid = 0
        """0 until the worker is ready."""
        self.jobs: list[Job] = []
        """The batch that the worker computes."""
        self._timer: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[WorkerReady] = asyncio.get_running_loop().create_future()
        self._reader = wire.Reader()
        self._transport: asyncio.Transport | None = None

    async def connect(self, connection: socket.socket) -> ModelInfo:
        """Wait until the worker is ready. Raises the LimbeckError that it sent, or EOFError if it exited."""
        connection.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=connection)
        return (await self._ready).info

    def submit(self, jobs: list[Job], timeout: float, on_timeout: Callable[[], None]) -> None:
        """Send a batch to an idle worker. Call `on_timeout` if its results take longer than `timeout` seconds."""
        assert self._transport is not None
        self.state, self.jobs = WorkerState.BUSY, jobs
        self._timer = asyncio.get_running_loop().call_later(timeout, on_timeout)
        self._transport.writelines(wire.pack([job.task for job in jobs]))

    def kill(self) -> None:
        """Send SIGKILL to a worker that is ready."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the connection. The worker finishes its batch, then exits."""
        self.state = WorkerState.CLOSING
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)  # makes uvloop send at once, not at the end of the iteration

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            if self.state is WorkerState.STARTING:
                self._receive_first(message)
            else:
                self._receive_results(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = WorkerState.CLOSING
        self._cancel_timer()
        if self.pid:
            self._on_disconnect(self)
        elif not self._ready.done():
            self._ready.set_exception(EOFError("the worker exited before it was ready"))

    def _receive_first(self, message: Any) -> None:
        if self._ready.done():  # cancelled
            return
        if isinstance(message, WorkerReady):
            self.pid = message.pid
            self.state = WorkerState.IDLE
            self._ready.set_result(message)
        else:
            self._ready.set_exception(message)

    def _receive_results(self, results: list[TaskResult]) -> None:
        self._cancel_timer()
        jobs, self.jobs = self.jobs, []
        self.state = WorkerState.IDLE
        self._on_results(self, jobs, results)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
