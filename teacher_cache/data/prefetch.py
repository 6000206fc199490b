"""Download the next shards into the shard cache while the current one is in use."""

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
"""Number of concurrent downloads in each process that reads."""
MAX_LOOKAHEAD = 4096
"""Maximum number of items that are read in advance to find the next shards."""

T = TypeVar("T")


def prefetch(items: Iterable[T], index: ShardIndex, shard_of: Callable[[T], int], shards: int = 1) -> Iterator[T]:
    """Yield the items unchanged, and download up to `shards` of the shards that they need next.

    shard_of: the shard that an item needs. Without a shard cache nothing is downloaded. If a download fails, the
    reader of that shard raises the error.
    """
    if index.cache is None:
        yield from items
        return
    source, queue = iter(items), deque[T]()
    recent: LRUCache[int, None] = LRUCache(shards + 1)  # the shards of the last items
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
    """Download a shard into the shard cache. An error is ignored; the reader of the shard raises it again."""
    with suppress(LimbeckError):
        ensure_cached(index, shard)
