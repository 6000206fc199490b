"""Find out whether the views are the slower half of a job, and what would help."""

from teacher_cache.console import count_of
from teacher_cache.distributed.machine import process_cores
from teacher_cache.loading.pace import Pace

MIN_WAITING = 0.1
"""Share of the time spent waiting for views, below which nothing is said."""
MIN_SECONDS = 20.0
"""Time of the job before which nothing is said: processes and files are still being opened."""


class Bottleneck:
    """Describes the bottleneck of a job once, if that is clearly the views.

    If the network is the slower half there is nothing to say: that is what a job should be.
    """

    def __init__(self, pace: Pace, table: str, reuse: str, streams: int | None = None) -> None:
        """pace: of the loader. table: with the key `workers`. streams: of this process, which limit the workers.

        reuse: the key that gives a decoded image more views.
        """
        self._pace, self._table, self._reuse, self._streams = pace, table, reuse, streams
        self._seconds = self._waited = 0.0
        self._is_described = False

    def add(self, seconds: float, waited: float) -> str:
        """Add time of the job, and the part of it spent waiting for views. Returns a line, or ""."""
        self._seconds += seconds
        self._waited += waited
        return self.describe(self._seconds, self._waited)

    def describe(self, seconds: float, waited: float) -> str:
        """The line for a job that took this time until now, and waited for this part of it; "" after the first."""
        if self._is_described or not self._is_views(seconds, waited):
            return ""
        self._is_described = True
        pace, workers = self._pace.views_per_second, count_of(self._pace.workers, "worker")
        waiting = f"{waited / seconds:.0%} of the time waiting"
        return f"views are the bottleneck: {pace:,.0f} views/s from {workers}, {waiting}; {self._advice()}"

    def _is_views(self, seconds: float, waited: float) -> bool:
        """Whether the workers' own pace is below that of the rest of the job, and the wait is long."""
        if seconds < MIN_SECONDS or waited < MIN_WAITING * seconds:
            return False
        return self._pace.views_per_second * (seconds - waited) < self._pace.views

    def _advice(self) -> str:
        own_cores, workers = process_cores(), self._pace.workers
        others = f"limbeck pack --size or a larger {self._reuse} would help"
        if workers >= own_cores:
            return f"more cores, {others}"
        if self._streams is not None and workers >= self._streams:
            allowed = f"train.streams allows {count_of(self._streams, 'worker')} on these {own_cores} cores"
            return f"{allowed}: more streams in a new run, {others}"
        return f"{self._table}.workers = {own_cores}, {others}"
