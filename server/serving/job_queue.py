"""The images that wait for a worker, first in, first out."""

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
    """One image that a client waits for.

    is_disconnected: whether the client has closed its connection. timer: fails the job after its queue timeout.
    arrived, started: in seconds of time.perf_counter(); started is 0 until a worker has the job.
    """

    task: Task
    future: asyncio.Future[Any]
    is_disconnected: Callable[[], bool]
    arrived: float
    timer: asyncio.TimerHandle | None = None
    started: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether it has a result, has failed, or was cancelled."""
        return self.future.done()


class JobQueue:
    """Jobs that wait for a worker. on_failure: called with the error of each job that ends in the queue."""

    def __init__(self, on_failure: Callable[[LimbeckError], None]) -> None:
        self._jobs: deque[Job] = deque()
        self._on_failure = on_failure
        self.waiting = 0
        """Number of jobs that are not done."""

    def add(self, job: Job, timeout: float, on_timeout: Callable[[], None]) -> None:
        """Append a job. After `timeout` seconds it fails with DeadlineError, and `on_timeout` is called."""
        job.timer = asyncio.get_running_loop().call_later(timeout, self._expire, job, on_timeout)
        self._jobs.append(job)
        self.waiting += 1

    def take(self, count: int) -> list[Job]:
        """Remove and return the next `count` jobs, except those that are done or disconnected."""
        jobs: list[Job] = []
        while self._jobs and len(jobs) < count:
            job = self._jobs.popleft()
            if job.is_done:
                continue
            if job.is_disconnected():
                self.drop(job)
                continue
            self.waiting -= 1
            assert job.timer is not None
            job.timer.cancel()
            jobs.append(job)
        return jobs

    def drop(self, job: Job) -> None:
        """Fail a job because its client has disconnected. Does nothing if a worker has the job already."""
        if job.started:
            return
        if job.timer is not None:
            job.timer.cancel()
        error = ClientDisconnectedError("the client closed the connection")
        if job.future.cancelled():
            self.waiting -= 1
            self._on_failure(error)
        self._fail(job, error)

    def drop_disconnected(self) -> None:
        """Remove all jobs that are done or whose client has disconnected."""
        for job in self._jobs:
            if not job.is_done and job.is_disconnected():
                self.drop(job)
        self._jobs = deque(job for job in self._jobs if not job.is_done)

    def jobs(self) -> list[Job]:
        """All jobs in the queue, in order; some may be done."""
        return list(self._jobs)

    def _expire(self, job: Job, on_timeout: Callable[[], None]) -> None:
        self._fail(job, DeadlineError("no worker was free before the deadline; send the request again later"))
        on_timeout()

    def _fail(self, job: Job, error: LimbeckError) -> None:
        if not job.is_done:
            self.waiting -= 1
            job.future.set_exception(error)
            self._on_failure(error)
