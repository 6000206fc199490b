"""Worker processes that read ahead, and end with the process that they work for, however that ends."""

import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader, IterableDataset

from teacher_cache.storage.store import is_remote

T = TypeVar("T")
LOOK_SECONDS = 1.0


def load(dataset: IterableDataset[T], workers: int, *places: str, **options: Any) -> DataLoader[T]:
    """What the dataset yields, made by so many workers, or here where there are none.

    places: where the workers read, by which they are started. options: more of DataLoader's.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=worker_start(workers, *places),
        worker_init_fn=partial(_end_with, os.getpid()),
        **options,
    )


def _end_with(parent: int, _: int) -> None:
    """torch's workers look for their parent too, but then wait for ever to hand over what they made."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def worker_start(workers: int, *places: str | Path) -> str | None:
    """How DataLoader workers of these places begin: neither threads nor locks live well through a fork."""
    return "spawn" if workers and any(map(is_remote, places)) else None
