"""Load a dataset in worker processes, which exit with their parent. A lost item is always an error."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch

from teacher_cache.loading.messages import Dataset
from teacher_cache.loading.pool import LoaderPool
from teacher_cache.storage.store import is_remote

T = TypeVar("T")


def load(
    dataset: Dataset[T], workers: int, *urls: str, in_order: bool = True, pin_memory: bool = False
) -> Iterator[T]:
    """Yield the items of a dataset, read by `workers` processes, or by this process if `workers` is 0.

    urls: what the workers read; it determines how they are started. in_order: take the workers' items in turn,
    instead of as they become ready. pin_memory: call each item's method `pin_memory`, with workers in a thread.
    Raises a worker's LimbeckError or OSError as it is. Any other failure of a worker is LoaderError, or
    LoaderLostError if it was killed or exited, or if memory, processes or open files ran out.
    """
    if workers == 0:
        for item in dataset.items(0, 1):
            yield _pin(item) if pin_memory else item
        return
    with ExitStack() as stack:
        pool = LoaderPool(dataset, workers, worker_start(workers, *urls), in_order)
        receive = stack.enter_context(_PinThread(pool.receive)).receive if pin_memory else pool.receive
        stack.callback(pool.stop)
        while received := receive():
            yield received.pop()  # this frame does not keep the memory of the item


class _PinThread:
    """Receives and pins one item in advance, in a thread. A context manager; stop the pool before its exit."""

    def __init__(self, receive: Callable[[], list[Any]]) -> None:
        self._receive = receive
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = ThreadPoolExecutor(1, "pin", initializer=_prepare_thread, initargs=(device,))
        self._next = self._thread.submit(self._receive_pinned)

    def receive(self) -> list[Any]:
        """The next item in a list, or [] after the last one. Raises the errors of the pool."""
        received = self._next.result()
        self._next = self._thread.submit(self._receive_pinned)
        return received

    def _receive_pinned(self) -> list[Any]:
        return [_pin(item) for item in self._receive()]

    def __enter__(self) -> "_PinThread":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def _prepare_thread(device: int | None) -> None:
    torch.set_num_threads(1)  # else the copies would take all cores
    if device is not None:
        torch.cuda.set_device(device)  # a thread starts with device 0


def _pin(item: Any) -> Any:
    return item.pin_memory()


def worker_start(workers: int, *urls: str | Path) -> str | None:
    """The start method of workers that read these URLs; None is the default of `multiprocessing`.

    Remote stores use threads and locks, which a fork does not copy safely.
    """
    return "spawn" if workers and any(map(is_remote, urls)) else None
