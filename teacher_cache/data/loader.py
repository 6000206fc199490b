"""Load a dataset in worker processes, which exit with their parent. A lost item is always an error."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch

from teacher_cache.loading.messages import Dataset
from teacher_cache.loading.pace import Pace
from teacher_cache.loading.pool import LoaderPool
from teacher_cache.loading.ring import SharedRing
from teacher_cache.storage.store import is_remote

T = TypeVar("T")


def load(
    dataset: Dataset[T],
    workers: int,
    *urls: str,
    ring: SharedRing | None = None,
    in_order: bool = True,
    pace: Pace | None = None,
) -> Iterator[T]:
    """Yield the items of a dataset, read by `workers` processes, or by this process if `workers` is 0.

    urls: what the workers read; it determines how they are started. in_order: take the workers' items in turn,
    instead of as they become ready. Items are sent as bytes; large arrays belong into `ring`, which is pinned if
    this process uses CUDA. pace: gets the time that each worker takes.
    Raises a worker's LimbeckError or OSError as it is. Any other failure of a worker is LoaderError, or
    LoaderLostError if it was killed or exited, or if memory or open files ran out.
    """
    if workers == 0:
        _pin(ring)
        yield from _timed(dataset.items(0, 1), pace or Pace())
        return
    pool = LoaderPool(dataset, workers, worker_start(workers, *urls), in_order, pace)
    try:
        _pin(ring)  # after the workers have been forked
        while received := pool.receive():
            yield received.pop()
    finally:
        pool.stop()


def _pin(ring: SharedRing | None) -> None:
    if ring and torch.cuda.is_initialized():
        ring.pin()


def _timed(items: Iterator[T], pace: Pace) -> Iterator[T]:
    started = time.monotonic()
    for item in items:
        pace.add(0, time.monotonic() - started)
        yield item
        started = time.monotonic()


def worker_start(workers: int, *urls: str | Path) -> str | None:
    """The start method of workers that read these URLs; None is the default of `multiprocessing`.

    Remote stores use threads and locks, which a fork does not copy safely.
    """
    return "spawn" if workers and any(map(is_remote, urls)) else None
