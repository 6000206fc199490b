"""Stopwatch for code blocks and for the wait between items of an iterator."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Total seconds spent inside its `with` blocks."""

    seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.monotonic() - self._started

    def time_each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; count only the time spent waiting for each one."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
