"""The worker processes of a loader, as the process that receives their items sees them."""

import os
import pickle
import time
from collections import deque
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, Generic

from teacher_cache.errors import LoaderError, LoaderLostError
from teacher_cache.loading.failure import explain_receiving, explain_starting, lost, resource_advice, worker_name
from teacher_cache.loading.messages import STOP, TAKEN, Dataset, EndOfItems, LoadedItem, LoadFailure, T
from teacher_cache.loading.pace import Pace
from teacher_cache.loading.worker import run_worker

STOP_SECONDS = 2.0
"""Time for all workers to exit after STOP; then they are killed, which harms nothing."""
EXIT_SECONDS = 5.0
"""Maximum wait for the exit status of a process that has closed its connection."""


class LoaderPool(Generic[T]):
    """The running workers of a dataset.

    method: how to start them; None is the default of `multiprocessing`. in_order: take one item of each worker in
    turn, instead of as they become ready. pace: gets the time that each worker takes.
    Raises LoaderLostError if a worker cannot be started.
    """

    def __init__(
        self, dataset: Dataset[T], workers: int, method: str | None, in_order: bool, pace: Pace | None = None
    ) -> None:
        self._in_order = in_order
        self._workers: list[_WorkerProcess[T]] = []
        context = get_context(method)
        try:
            for number in range(workers):
                self._workers.append(_WorkerProcess(context, dataset, number, workers, pace or Pace()))
        except (OSError, RuntimeError, MemoryError) as error:
            self.stop()
            raise explain_starting(error, len(self._workers), workers) from None
        self._active = deque(self._workers)

    def receive(self) -> list[T]:
        """Wait for the next item. Returns it in a list, or [] after the last item of every worker.

        So no frame keeps the memory of an item. Raises the error of a worker, or LoaderError.
        """
        while self._active:
            worker = self._active[0] if self._in_order else self._wait_for_any()
            self._active.remove(worker)
            if received := worker.receive():
                self._active.append(worker)
                return received
        return []

    def stop(self) -> None:
        """Stop all workers and wait until they have ended."""
        for worker in self._workers:
            worker.request_stop()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.end(deadline)

    def _wait_for_any(self) -> "_WorkerProcess[T]":
        ready = wait([source for worker in self._active for source in worker.sources])
        return next(worker for worker in self._active if any(source in ready for source in worker.sources))


class _WorkerProcess(Generic[T]):
    """One worker, its connection, and the number of items received from it."""

    def __init__(self, context: BaseContext, dataset: Dataset[T], number: int, workers: int, pace: Pace) -> None:
        self._received, self._number, self._pace = 0, number, pace
        self._title = worker_name(number, workers)
        self._connection, worker_end = context.Pipe()
        with worker_end:  # the worker must have the only other end, so that its death closes the connection
            arguments = (dataset, number, workers, worker_end, os.getpid())
            self._process = context.Process(target=run_worker, args=arguments, daemon=True)  # type: ignore[attr-defined]
            self._process.start()
        self.sources: list[Any] = [self._connection, self._process.sentinel]
        """The objects to wait for: at least one is ready if there is a message, or the process has ended."""

    def receive(self) -> list[T]:
        """Wait for the next item. Returns it in a list, or [] after the last. Raises the worker's error."""
        wait(self.sources)
        message = self._next_message()
        if isinstance(message, LoadFailure):
            raise message.error
        if (number := message.number if isinstance(message, LoadedItem) else message.items) != self._received:
            raise LoaderError(
                f"{self._title} has sent {number} items, and {self._received} of them were received; rerun"
            )
        if isinstance(message, EndOfItems):
            return []
        self._received += 1
        self._pace.add(self._number, message.seconds)
        with suppress(OSError):  # it has ended, which the next call reports
            self._connection.send_bytes(TAKEN)
        return [message.value]

    def _next_message(self) -> LoadedItem[T] | EndOfItems | LoadFailure:
        try:
            if not self._connection.poll():
                raise EOFError
            data = self._connection.recv_bytes()
        except (EOFError, OSError, MemoryError) as error:
            raise (explain_receiving(error, self._title) if resource_advice(error) else self._lost()) from None
        try:
            message: LoadedItem[T] | EndOfItems | LoadFailure = pickle.loads(data)
        except Exception as error:  # pickle calls methods of the item, which may raise anything
            raise explain_receiving(error, self._title) from None
        return message

    def _lost(self) -> LoaderLostError:
        self._process.join(EXIT_SECONDS)
        return lost(f"{self._title} (pid {self._process.pid})", self._process.exitcode)

    def request_stop(self) -> None:
        with suppress(OSError):  # it has ended
            self._connection.send_bytes(STOP)

    def end(self, deadline: float) -> None:
        """Wait until a time of the monotonic clock, then kill the process if it is running."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
