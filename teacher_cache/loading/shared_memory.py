"""Check /dev/shm, through which the workers of a loader send tensors."""

import shutil
from dataclasses import dataclass

from teacher_cache.console import log_line
from teacher_cache.errors import LoaderLostError
from teacher_cache.loading.messages import PREFETCH

FOLDER = "/dev/shm"
"""The file system of POSIX shared memory on Linux."""
ENLARGE = "enlarge it (docker run --shm-size=8g; Kubernetes: an emptyDir with medium: Memory) or set workers = 0"


@dataclass(frozen=True)
class SharedItems:
    """The items of a loader in shared memory.

    item_bytes: size of the smallest, 0 if it is sent in another way. together: number of items that the receiver
    needs at the same time.
    """

    item_bytes: int
    together: int = 1


def free_bytes() -> int | None:
    """Free bytes in /dev/shm; None on a system without it."""
    try:
        return shutil.disk_usage(FOLDER).free
    except OSError:
        return None


def require_shared_memory(items: SharedItems, workers: int) -> None:
    """Raise LoaderLostError if the items cannot fit into /dev/shm, before any work begins.

    If only the prefetched items may not fit, this is logged: a receiver that is fast enough leaves none waiting.
    """
    free = free_bytes()
    needed = items.together * items.item_bytes
    prefetched = (workers * PREFETCH + items.together) * items.item_bytes
    if free is None or free >= prefetched:
        return
    message = f"{FOLDER} has {free:,} bytes free"
    if free < needed:
        raise LoaderLostError(f"{message}, and the batches of {workers} workers need {needed:,}; {ENLARGE}")
    log_line(
        f"{message}, and the batches of {workers} workers take up to {prefetched:,}; if it fills up, {ENLARGE}"
    )
