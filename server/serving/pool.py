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
from server.ipc.messages import ModelInfo, Pixels, Prediction, Task, TaskResult, WorkerReady
from server.ipc.spawn import FIRST, NEXT, HostSpec
from server.metrics import ServerMetrics
from server.serving.job_queue import Job, JobQueue
from server.serving.latency import ROOM, Latency
from server.serving.supervisor import ModelHost, Supervisor
from server.serving.worker_client import WorkerClient
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

    crew: Supervisor
    order: HostSpec
    settings: Settings
    metrics: ServerMetrics
    facts: ModelInfo = field(init=False)
    _holder: ModelHost = field(init=False)
    _queue: JobQueue = field(init=False)
    _idle: deque[WorkerClient] = field(default_factory=deque)
    _busy: dict[WorkerClient, _Batch] = field(default_factory=dict)
    _starting: dict[WorkerClient, asyncio.Future[Any]] = field(default_factory=dict)
    _pids: dict[WorkerClient, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _pace: Latency = field(default_factory=Latency)
    _bad_in_a_row: int = 0
    _hung_up: bool = False

    def __post_init__(self) -> None:
        self._queue = JobQueue(lambda reason: self.metrics.faults.labels(*self._labels, reason).inc())

    @classmethod
    async def open(cls, crew: Supervisor, order: HostSpec, settings: Settings, metrics: ServerMetrics) -> Self:
        """Open a bundle and start its workers; returns when all are ready. Raises RunError where it cannot be."""
        pool = cls(crew, order, settings, metrics)
        pool._holder = await crew.open(order)
        words = [NEXT if number else FIRST for number in range(settings.workers)]
        try:
            hired = await asyncio.gather(*(pool._start_worker(word) for word in words), return_exceptions=True)
            for found in hired:
                if isinstance(found, BaseException):
                    raise found
        except BaseException:  # a worker that did not start, or the server's end
            pool._shut_down()
            raise
        first = hired[0]
        assert isinstance(first, ModelInfo)
        pool.facts = first
        pool.publish_metrics()
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
        if (
            self._queue.waiting + images > self.settings.max_waiting + free
            or wait > ROOM * self._pace.queue_timeout(self.settings.deadline)
        ):
            self.metrics.faults.labels(*self._labels, "busy").inc(images)
            raise BusyError("too many images wait already; ask again later", max(1, math.ceil(wait / 2)))

    async def predict(
        self,
        image: bytes | Pixels,
        fusion: str = "",
        deadline: float | None = None,
        gone: Callable[[], bool] = _present,
    ) -> Prediction:
        """What the heads say of one image. Raises ImageError or a RefusedError."""
        judged: Prediction = await self.run(Task(image, fusion), deadline, gone)
        return judged

    async def run(self, task: Task, deadline: float | None = None, gone: Callable[[], bool] = _present) -> Any:
        """What a worker makes of one task. Raises ImageError or a RefusedError."""
        self.admit()
        job = Job(task, asyncio.get_running_loop().create_future(), gone, time.perf_counter())
        patience = self._pace.queue_timeout(self.settings.deadline if deadline is None else deadline)
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
        self._shut_down()

    def drop(self) -> None:
        """End the workers at once; what waits is told so."""
        self._shut_down()
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

    async def _start_worker(self, word: bytes) -> ModelInfo:
        """Start one worker; returns when it is ready."""
        loop = asyncio.get_running_loop()
        ours = self._holder.fork(word)
        ours.setblocking(False)
        first = loop.create_future()
        lane = WorkerClient(self._on_message, self._on_disconnect)
        self._starting[lane] = first
        await loop.create_connection(lambda: lane, sock=ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                said: WorkerReady | LimbeckError = await first
        except TimeoutError:
            lane.close()
            raise RunError(f"'{self.order.folder}' is not ready after {START_SECONDS} s; see the log") from None
        finally:
            self._starting.pop(lane, None)
        if isinstance(said, LimbeckError):
            lane.close()
            raise said
        if lane.dead:
            raise RunError(f"a worker for '{self.order.folder}' died as it began")
        self._pids[lane] = said.pid
        self._idle.append(lane)
        return said.facts

    def _on_message(self, lane: WorkerClient, message: Any) -> None:
        if lane in self._starting:
            self._starting[lane].set_result(message)
            return
        batch = self._busy.pop(lane)
        batch.timer.cancel()
        answers: list[TaskResult] = message
        took = time.perf_counter() - batch.jobs[0].began
        self._pace.record(took, len(batch.jobs))
        self._compute_metric.observe(took)
        self._idle.append(lane)
        self._dispatch()  # first: the worker waits
        for job, done in zip(batch.jobs, answers, strict=True):
            self._resolve(job, done)

    def _resolve(self, job: Job, done: TaskResult) -> None:
        value = done.value
        if isinstance(value, NonFiniteError):
            self._bad_in_a_row += 1
            if self._bad_in_a_row == self.settings.non_finite:
                self._begin(self._examine())
        elif isinstance(value, Prediction):
            self._bad_in_a_row = 0
            value = Prediction(value.rows, 1000 * (job.began - job.arrived), done.compute_ms)
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

    def _on_disconnect(self, lane: WorkerClient) -> None:
        if lane in self._starting:
            if not self._starting[lane].done():
                self._starting[lane].set_exception(
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
                await self.predict(blank)

    async def _replace(self) -> None:
        """Start a worker for one that is gone, again and again until one is ready."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                await self._start_worker(NEXT)
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

    def _kill(self, lane: WorkerClient) -> None:
        """End a worker that is at one batch for too long; its socket then tells `_lost`."""
        log.error("a worker of %s is at one batch for too long; it is killed", self.facts.name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[lane], signal.SIGKILL)

    def _shut_down(self) -> None:
        self._hung_up = True
        for task in self._tasks:
            task.cancel()
        for lane in [*self._pids, *self._starting]:
            lane.close()
        self._holder.close()

    def publish_metrics(self) -> None:
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
