"""Worker processes that read ahead, and end with the process that they work for, however that ends."""

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
    """What the dataset yields, made by so many workers, or here where there are none.

    places: where the workers read, by which they are started. options: more of DataLoader's. Raises the
    LimbeckError or OSError that the dataset raised in a worker, with its own class, message and errno.
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
    """The last item of a dataset that raised."""

    error: LimbeckError | OSError


class _ErrorsAsItems(IterableDataset[T | _Failure], Generic[T]):
    """A dataset that yields its error: one that a worker raises, torch replaces by a text with a traceback."""

    def __init__(self, dataset: IterableDataset[T]) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[T | _Failure]:
        try:
            yield from self._dataset
        except (LimbeckError, OSError) as error:
            yield _Failure(error)


def _watch_parent(parent: int, _: int) -> None:
    """torch's workers look for their parent too, but then wait for ever to hand over what they made."""
    threading.Thread(target=_exit_without_parent, args=(parent,), daemon=True).start()


def _exit_without_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def worker_start(workers: int, *urls: str | Path) -> str | None:
    """How DataLoader workers of these places begin: neither threads nor locks live well through a fork."""
    return "spawn" if workers and any(map(is_remote, urls)) else None
