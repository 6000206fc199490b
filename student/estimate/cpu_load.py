"""What else a machine is at, while something on it is timed."""

import os
from pathlib import Path
from types import TracebackType

STAT = Path("/proc/stat")
IDLE = (3, 4)
"""Of the times in its first line: idle, and waiting for a disk."""
GUESTS = 2
"""Its last times are in the first ones already."""


class BackgroundLoad:
    """As a context: how many cores other processes kept busy meanwhile. Where the kernel is not Linux, none."""

    cores = 0.0

    def __enter__(self) -> "BackgroundLoad":
        self._began = _times()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        passed, busy, own = (now - then for now, then in zip(_times(), self._began, strict=True))
        if passed > 0:
            self.cores = max(busy - own, 0.0) / passed * (os.cpu_count() or 1)

    @property
    def share(self) -> float:
        """Of the machine, 0 to 1."""
        return self.cores / (os.cpu_count() or 1)


def _times() -> tuple[float, float, float]:
    """Seconds of all cores together: that have passed, that were busy, and with this process and its children.

    A child counts when it has ended.
    """
    own = sum(os.times()[:4])
    if not STAT.exists():
        return 0.0, 0.0, own
    ticks = [int(word) for word in STAT.read_text().partition("\n")[0].split()[1:]][:-GUESTS]
    each = os.sysconf("SC_CLK_TCK")
    return sum(ticks) / each, (sum(ticks) - sum(ticks[place] for place in IDLE)) / each, own
