"""A stopwatch, and iteration that measures the time spent waiting for items."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Seconds spent inside its `with` blocks, all of them together."""

    seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.monotonic() - self._started

    def time_each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Hand items on, timing only how long each of them took to come."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
