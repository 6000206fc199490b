"""CPU load of other processes while something is timed."""

import os
from types import TracebackType

import psutil

from teacher_cache.distributed.machine import cores


class BackgroundLoad:
    """Context manager that measures how many cores other processes use; 0 if the kernel counts no CPU time."""

    cores = 0.0

    def __enter__(self) -> "BackgroundLoad":
        self._start = _times()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed, busy, own = (now - before for now, before in zip(_times(), self._start, strict=True))
        if elapsed > 0:
            self.cores = max(busy - own, 0.0) / elapsed * (os.cpu_count() or 1)

    @property
    def share(self) -> float:
        """Share of this process's cores that other processes use, 0 to 1, if they use all other cores first."""
        own = cores()
        return max(self.cores - ((os.cpu_count() or 1) - own), 0.0) / own


def _times() -> tuple[float, float, float]:
    """CPU seconds: elapsed on all cores, busy on all cores, and used by this process and its children.

    Only children that have exited count.
    """
    times = psutil.cpu_times()._asdict()
    guests = ("guest", "guest_nice")  # Linux includes them in user and nice
    elapsed = sum(seconds for name, seconds in times.items() if name not in guests)
    idle = times["idle"] + times.get("iowait", 0.0)
    return elapsed, elapsed - idle, sum(os.times()[:4])
