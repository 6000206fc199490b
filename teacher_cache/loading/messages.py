"""What a loader and its workers send each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from teacher_cache.errors import LimbeckError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PREFETCH = 2
"""Maximum number of items of a worker that the receiver has not yet taken."""
TAKEN, STOP = b"taken", b"stop"
"""Messages to a worker: the receiver has taken an item; exit."""


class Dataset(Protocol[T_co]):
    """Items that several workers share. With the start method "spawn" it must be picklable."""

    def items(self, worker: int, workers: int) -> Iterator[T_co]:
        """Yield the items of worker number `worker` (0-based) of `workers`."""


@dataclass(frozen=True)
class LoadedItem(Generic[T]):
    """An item. number: how many items this worker has sent before it. seconds: the time to make it."""

    number: int
    value: T
    seconds: float = 0.0


@dataclass(frozen=True)
class EndOfItems:
    """The last message of a worker. items: how many it has sent."""

    items: int


@dataclass(frozen=True)
class LoadFailure:
    """The last message of a worker that failed."""

    error: LimbeckError | OSError
