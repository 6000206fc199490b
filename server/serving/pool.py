"""One served model: what waits for it, and the workers that take from there."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from server.errors import BusyError, ImageTypeError, NonFiniteError, WorkerLostError
from server.ipc.messages import Begun, Done, Facts, Judged, Pixels, Task
from server.ipc.spawn import FIRST, NEXT, Order
from server.metrics import Metrics
from server.serving.job_queue import Job, Queue
from server.serving.latency import ROOM, Pace
from server.serving.supervisor import Crew, Holder
from server.serving.worker_client import Lane
from server.settings import Settings
from server.tracing import current
from teacher_cache.errors import ImageError, LimbeckError, RunError

START_SECONDS = 300
"""For a worker to be ready: torch.compile takes minutes."""
LONGEST_PAUSE_SECONDS = 5.0
EXAMINE_SECONDS = 5.0

log = logging.getLogger("limbeck")


def _present() -> bool:
    return False


@dataclass(eq=False)
class _Batch:
    jobs: list[Job]
    timer: asyncio.TimerHandle


@dataclass(eq=False)
class Pool:
    """A model and its workers.

    An idle worker takes what waits, at once, and never waits for more: batches form only while all are busy. A
    batch is what one worker has in hand; should it die, that alone is lost.
    """

    crew: Crew
    order: Order
    settings: Settings
    metrics: Metrics
    facts: Facts = field(init=False)
    _holder: Holder = field(init=False)
    _queue: Queue = field(init=False)
    _idle: deque[Lane] = field(default_factory=deque)
    _busy: dict[Lane, _Batch] = field(default_factory=dict)
    _hatching: dict[Lane, asyncio.Future[Any]] = field(default_factory=dict)
    _pids: dict[Lane, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _pace: Pace = field(default_factory=Pace)
    _bad_in_a_row: int = 0
    _hung_up: bool = False

    def __post_init__(self) -> None:
        self._queue = Queue(lambda reason: self.metrics.faults.labels(*self._labels, reason).inc())

    @classmethod
    async def open(cls, crew: Crew, order: Order, settings: Settings, metrics: Metrics) -> Self:
        """Open a bundle and start its workers; returns when all are ready. Raises RunError where it cannot be."""
        pool = cls(crew, order, settings, metrics)
        pool._holder = await crew.open(order)
        words = [NEXT if number else FIRST for number in range(settings.workers)]
        try:
            hired = await asyncio.gather(*(pool._hire(word) for word in words), return_exceptions=True)
            for found in hired:
                if isinstance(found, BaseException):
                    raise found
        except BaseException:  # a worker that did not start, or the server's end
            pool._hang_up()
            raise
        first = hired[0]
        assert isinstance(first, Facts)
        pool.facts = first
        pool.tell()
        for _ in range(settings.workers - len(pool._pids)):
            pool._begin(pool._replace())
        return pool

    # What is asked

    def admit(self, images: int = 1) -> None:
        """Raises BusyError where so many more images would have to wait too long, or are too many."""
        if self._hung_up:
            raise BusyError("the model is no longer served from here; ask again")
        free = len(self._idle)
        if self._queue.waiting + images > self.settings.max_waiting + free:
            self._queue.sweep()
        wait = self._pace.wait(self._queue.waiting + images - free, len(self._pids))
        if self._queue.waiting + images > self.settings.max_waiting + free or wait > ROOM * self._pace.patience(
            self.settings.deadline
        ):
            self.metrics.faults.labels(*self._labels, "busy").inc(images)
            raise BusyError("too many images wait already; ask again later", max(1, math.ceil(wait / 2)))

    async def judge(
        self,
        image: bytes | Pixels,
        fusion: str = "",
        deadline: float | None = None,
        gone: Callable[[], bool] = _present,
    ) -> Judged:
        """What the heads say of one image. Raises ImageError or a RefusedError."""
        judged: Judged = await self.ask(Task(image, fusion), deadline, gone)
        return judged

    async def ask(self, task: Task, deadline: float | None = None, gone: Callable[[], bool] = _present) -> Any:
        """What a worker makes of one task. Raises ImageError or a RefusedError."""
        self.admit()
        job = Job(task, asyncio.get_running_loop().create_future(), gone, time.perf_counter())
        patience = self._pace.patience(self.settings.deadline if deadline is None else deadline)
        self._queue.add(job, patience, self._dispatch)
        self._dispatch()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._queue.drop(job)
            raise
        finally:
            if job.began and (trace := current.get()) is not None:
                trace.image(job.arrived, job.began)
            del job, task  # an error's traceback holds this frame, and so the image

    def problems(self) -> list[str]:
        """Why this model is not ready; [] when it is."""
        found = []
        if not self._pids:
            found.append("no worker lives")
        if self._queue.waiting >= self.settings.max_waiting:
            found.append("the queue is full")
        if self._bad_in_a_row >= self.settings.non_finite:
            found.append(f"the last {self._bad_in_a_row} answers were not finite")
        return [f"{self.facts.name}: {words}" for words in found]

    @property
    def alive(self) -> int:
        """Workers that are ready."""
        return len(self._pids)

    async def close(self) -> None:
        """Answer what waits and what is under way, then end the workers."""
        while self._queue.waiting or self._busy:
            self._quiet.clear()
            await self._quiet.wait()
        self._hang_up()

    def drop(self) -> None:
        """End the workers at once; what waits is told so."""
        self._hang_up()
        for job in [*self._queue.left(), *(job for batch in self._busy.values() for job in batch.jobs)]:
            if not job.over:
                job.future.set_exception(BusyError("the server is stopping; ask another"))

    # What waits

    def _dispatch(self) -> None:
        while self._idle and self._queue.waiting:
            share = math.ceil(self._queue.waiting / len(self._idle))
            jobs = self._queue.take(min(share, self.facts.batch))
            if not jobs:
                break
            lane, now = self._idle.pop(), time.perf_counter()  # the last that was at work: its caches are warm
            for job in jobs:
                job.began = now
                self._queued_metric.observe(now - job.arrived)
            self._batch_metric.observe(len(jobs))
            loop = asyncio.get_running_loop()
            self._busy[lane] = _Batch(jobs, loop.call_later(self.settings.compute_seconds, self._kill, lane))
            lane.ask([job.task for job in jobs])
        if not self._queue.waiting and not self._busy:
            self._quiet.set()

    # The workers

    async def _hire(self, word: bytes) -> Facts:
        """Start one worker; returns when it is ready."""
        loop = asyncio.get_running_loop()
        ours = self._holder.fork(word)
        ours.setblocking(False)
        first = loop.create_future()
        lane = Lane(self._heard, self._lost)
        self._hatching[lane] = first
        await loop.create_connection(lambda: lane, sock=ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                said: Begun | LimbeckError = await first
        except TimeoutError:
            lane.close()
            raise RunError(f"'{self.order.folder}' is not ready after {START_SECONDS} s; see the log") from None
        finally:
            self._hatching.pop(lane, None)
        if isinstance(said, LimbeckError):
            lane.close()
            raise said
        if lane.dead:
            raise RunError(f"a worker for '{self.order.folder}' died as it began")
        self._pids[lane] = said.pid
        self._idle.append(lane)
        return said.facts

    def _heard(self, lane: Lane, message: Any) -> None:
        if lane in self._hatching:
            self._hatching[lane].set_result(message)
            return
        batch = self._busy.pop(lane)
        batch.timer.cancel()
        answers: list[Done] = message
        took = time.perf_counter() - batch.jobs[0].began
        self._pace.took(took, len(batch.jobs))
        self._compute_metric.observe(took)
        self._idle.append(lane)
        self._dispatch()  # first: the worker waits
        for job, done in zip(batch.jobs, answers, strict=True):
            self._resolve(job, done)

    def _resolve(self, job: Job, done: Done) -> None:
        value = done.value
        if isinstance(value, NonFiniteError):
            self._bad_in_a_row += 1
            if self._bad_in_a_row == self.settings.non_finite:
                self._begin(self._examine())
        elif isinstance(value, Judged):
            self._bad_in_a_row = 0
            value = Judged(value.rows, 1000 * (job.began - job.arrived), done.compute_ms)
        if isinstance(value, Exception):
            self.metrics.faults.labels(*self._labels, type(value).__name__).inc()
            if type(value) in (ImageError, ImageTypeError):
                self.metrics.decode_failures.labels(*self._labels).inc()
        if job.over:
            return
        if isinstance(value, Exception):
            job.future.set_exception(value)
        else:
            job.future.set_result(value)

    def _lost(self, lane: Lane) -> None:
        if lane in self._hatching:
            if not self._hatching[lane].done():
                self._hatching[lane].set_exception(
                    RunError(f"a worker for '{self.order.folder}' died as it began")
                )
            else:
                lane.dead = True
            return
        if self._pids.pop(lane, None) is None:
            return  # it was never one of ours; who hired it is told
        with contextlib.suppress(ValueError):
            self._idle.remove(lane)
        if batch := self._busy.pop(lane, None):
            batch.timer.cancel()
            for job in batch.jobs:
                if not job.over:
                    job.future.set_exception(WorkerLostError("the worker at this image died; ask again"))
                self.metrics.faults.labels(*self._labels, "worker").inc()
        if self._hung_up or not hasattr(self, "facts"):  # `open` hires as many as are lacking
            return
        self._quiet.set()
        log.warning("a worker of %s died; another is started", self.facts.name)
        self._begin(self._replace())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # a task that nothing refers to can be collected
        task.add_done_callback(self._tasks.discard)

    async def _examine(self) -> None:
        """Ask for a blank image now and then: while it is not ready, no client may come to find it well."""
        blank = np.zeros((self.facts.size, self.facts.size, 3), np.uint8)
        while self._bad_in_a_row >= self.settings.non_finite:
            await asyncio.sleep(EXAMINE_SECONDS)
            with contextlib.suppress(LimbeckError):
                await self.judge(blank)

    async def _replace(self) -> None:
        """Start a worker for one that is gone, again and again until one is ready."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                await self._hire(NEXT)
                break
            except OSError:  # the holder is gone too; another must read the very same bundle
                try:
                    holder = await self.crew.open(replace(self.order, card=self.facts.card))
                except (LimbeckError, OSError) as error:
                    log.error("%s is not served meanwhile: %s", self.facts.name, error)
                else:
                    self._holder.close()
                    self._holder = holder
            except LimbeckError as error:
                log.error("a worker of %s does not start: %s", self.facts.name, error)
            pause = min(max(2 * pause, 0.1), LONGEST_PAUSE_SECONDS)
        self.metrics.restarts.labels(*self._labels).inc()
        self._dispatch()

    def _kill(self, lane: Lane) -> None:
        """End a worker that is at one batch for too long; its socket then tells `_lost`."""
        log.error("a worker of %s is at one batch for too long; it is killed", self.facts.name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[lane], signal.SIGKILL)

    def _hang_up(self) -> None:
        self._hung_up = True
        for task in self._tasks:
            task.cancel()
        for lane in [*self._pids, *self._hatching]:
            lane.close()
        self._holder.close()

    def tell(self) -> None:
        facts, (name, version) = self.facts, self._labels
        self.metrics.waiting.labels(name, version).set_function(lambda: self._queue.waiting)
        self.metrics.workers.labels(name, version).set_function(lambda: len(self._pids))
        self.metrics.difference.labels(name, version).set(facts.difference)
        self.metrics.info.labels(name, version, facts.sha256, facts.runtime, facts.device).set(1)
        self.metrics.restarts.labels(name, version)
        self.metrics.decode_failures.labels(name, version)
        self._batch_metric = self.metrics.batch.labels(name, version)
        self._queued_metric = self.metrics.queued.labels(name, version)
        self._compute_metric = self.metrics.compute.labels(name, version)

    @property
    def _labels(self) -> tuple[str, str]:
        return self.facts.name, self.facts.version


def all_problems(pools: Iterable[Pool]) -> list[str]:
    """Why the server as a whole is not ready; [] when it is."""
    every = list(pools)
    return [line for pool in every for line in pool.problems()] if every else ["no model is served"]
