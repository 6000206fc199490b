"""What else a machine is at, while something on it is timed."""

import os
from types import TracebackType

import psutil


class BackgroundLoad:
    """As a context: how many cores other processes kept busy meanwhile; 0 where the kernel does not count them."""

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
        """Of the machine, 0 to 1."""
        return self.cores / (os.cpu_count() or 1)


def _times() -> tuple[float, float, float]:
    """CPU seconds of all cores together: all that have passed, the busy ones, and those of this process.

    Those of this process include its children's that have ended.
    """
    times = psutil.cpu_times()._asdict()
    guests = ("guest", "guest_nice")  # Linux counts them in user and nice already
    elapsed = sum(seconds for name, seconds in times.items() if name not in guests)
    idle = times["idle"] + times.get("iowait", 0.0)
    return elapsed, elapsed - idle, sum(os.times()[:4])
