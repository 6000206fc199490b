"""The images that wait for a worker: first come, first served, and let go of when nobody wants them any more."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.errors import ClientDisconnectedError, DeadlineError
from server.ipc.messages import Task
from teacher_cache.errors import LimbeckError


@dataclass(eq=False)
class Job:
    """One image that waits. gone: whether its client is. arrived, began: perf_counter's seconds."""

    task: Task
    future: asyncio.Future[Any]
    gone: Callable[[], bool]
    arrived: float
    timer: asyncio.TimerHandle | None = None
    began: float = 0.0

    @property
    def over(self) -> bool:
        """Nobody wants it any more."""
        return self.future.done()


class JobQueue:
    """fault: told why an image was let go of, "deadline" or "gone"."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        self._jobs: deque[Job] = deque()
        self._fault = fault
        self.waiting = 0
        """Images that somebody still wants."""

    def add(self, job: Job, seconds: float, expired: Callable[[], None]) -> None:
        """Put it last. After so many seconds it is told that its deadline has passed, and then `expired` is."""
        job.timer = asyncio.get_running_loop().call_later(seconds, self._expire, job, expired)
        self._jobs.append(job)
        self.waiting += 1

    def take(self, count: int) -> list[Job]:
        """The next `count` jobs that somebody still wants."""
        taken: list[Job] = []
        while self._jobs and len(taken) < count:
            job = self._jobs.popleft()
            if job.over:
                continue
            if job.gone():
                self.drop(job)
                continue
            self.waiting -= 1
            assert job.timer is not None
            job.timer.cancel()
            taken.append(job)
        return taken

    def drop(self, job: Job) -> None:
        """Let go of a job whose client went away; one that a worker is at ends as it will, and finds nobody."""
        if job.began:
            return
        if job.timer is not None:
            job.timer.cancel()
        if job.future.cancelled():
            self.waiting -= 1
            self._fault("gone")
        self._end(job, ClientDisconnectedError("the client went away"), "gone")

    def sweep(self) -> None:
        """Let go of all that nobody wants any more."""
        for job in self._jobs:
            if not job.over and job.gone():
                self.drop(job)
        self._jobs = deque(job for job in self._jobs if not job.over)

    def left(self) -> list[Job]:
        """All that still wait, as they stand."""
        return list(self._jobs)

    def _expire(self, job: Job, expired: Callable[[], None]) -> None:
        self._end(job, DeadlineError("no worker was free in time; ask again later"), "deadline")
        expired()

    def _end(self, job: Job, error: LimbeckError, reason: str) -> None:
        if not job.future.done():
            self.waiting -= 1
            job.future.set_exception(error)
            self._fault(reason)
