"""The pace of the workers of a loader."""

from collections import defaultdict


class Pace:
    """The views that were received from a loader, and the time in which its workers made them.

    A worker's wait for the receiver does not count, so this is the pace of the workers, not that of the receiver.
    """

    def __init__(self) -> None:
        self.views = 0
        """Counted by the receiver."""
        self._seconds = defaultdict[int, float](float)

    def add(self, worker: int, seconds: float) -> None:
        """Count the time in which a worker has made an item."""
        self._seconds[worker] += seconds

    @property
    def workers(self) -> int:
        """Number of workers from which items were received; 1 if the receiver makes them itself."""
        return len(self._seconds)

    @property
    def views_per_second(self) -> float:
        """Pace of all workers together; 0 before the first view.

        It is that of the slowest worker, because each has a fixed share.
        """
        slowest = max(self._seconds.values(), default=0.0)
        return self.views / slowest if slowest else 0.0
