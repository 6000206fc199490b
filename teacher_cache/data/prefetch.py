"""Reading ahead: while one shard is worked on, those that come next are fetched into the shard cache."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from cachetools import LRUCache

from teacher_cache.data.index import ShardIndex
from teacher_cache.data.shards import ensure_cached
from teacher_cache.errors import LimbeckError

DOWNLOADS = 2
"""At the same time, in each process that reads."""
MAX_LOOKAHEAD = 4096
"""Items in which the next shards are looked for, at most."""

T = TypeVar("T")


def prefetch(items: Iterable[T], index: ShardIndex, shard_of: Callable[[T], int], shards: int = 1) -> Iterator[T]:
    """The items, unchanged; up to so many shards that will be needed after the last few are fetched meanwhile.

    Only where shards are kept. A fetch that fails is left for the reader to fail at, with its error.
    """
    if index.cache is None:
        yield from items
        return
    source, queue = iter(items), deque[T]()
    recent: LRUCache[int, None] = LRUCache(shards + 1)  # the last few shards that were handed over
    pending: set[int] = set()
    pool = ThreadPoolExecutor(DOWNLOADS)

    def fill() -> None:
        while len(pending) < shards and len(queue) < MAX_LOOKAHEAD:
            try:
                item = next(source)
            except StopIteration:
                return
            queue.append(item)
            shard = shard_of(item)
            if shard not in recent and shard not in pending:
                pending.add(shard)
                pool.submit(prefetch_shard, index, shard)

    try:
        fill()
        while queue:
            item = queue.popleft()
            shard = shard_of(item)
            pending.discard(shard)
            recent[shard] = None
            fill()
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def prefetch_shard(index: ShardIndex, shard: int) -> None:
    """As hold_shard; what fails is left for the reader to fail at, with its error."""
    with suppress(LimbeckError):
        ensure_cached(index, shard)
