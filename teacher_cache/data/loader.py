"""Load a dataset in worker processes, which exit if their parent exits in any way."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, IterableDataset

from teacher_cache.errors import LimbeckError
from teacher_cache.storage.store import is_remote

T = TypeVar("T")
POLL_SECONDS = 1.0


def load(dataset: IterableDataset[T], workers: int, *urls: str, **options: Any) -> Iterator[T]:
    """Yield the items of a dataset, read by `workers` processes, or by this process if `workers` is 0.

    urls: what the workers read; it determines how they are started. options: further arguments of DataLoader.
    If the dataset raises LimbeckError or OSError in a worker, the same error is raised here.
    """
    loader = DataLoader(
        _ErrorsAsItems(dataset),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=worker_start(workers, *urls),
        worker_init_fn=partial(_watch_parent, os.getpid()),
        **options,
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise item.error
        yield item


@dataclass(frozen=True)
class _Failure:
    """The last item of a dataset that raised an error."""

    error: LimbeckError | OSError


class _ErrorsAsItems(IterableDataset[T | _Failure], Generic[T]):
    """A dataset that yields its error as an item, since DataLoader turns a raised error into traceback text."""

    def __init__(self, dataset: IterableDataset[T]) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[T | _Failure]:
        try:
            yield from self._dataset
        except (LimbeckError, OSError) as error:
            yield _Failure(error)


def _watch_parent(parent: int, _: int) -> None:
    """Start a thread that ends this worker without its parent.

    DataLoader's own workers notice a missing parent too, but can block forever while sending an item.
    """
    threading.Thread(target=_exit_without_parent, args=(parent,), daemon=True).start()


def _exit_without_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def worker_start(workers: int, *urls: str | Path) -> str | None:
    """The start method of DataLoader workers that read these URLs; None is DataLoader's default.

    Remote stores use threads and locks, which a fork does not copy safely.
    """
    return "spawn" if workers and any(map(is_remote, urls)) else None
