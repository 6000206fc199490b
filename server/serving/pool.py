"""One served model: its queue and its workers."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np

from server.errors import BusyError, NonFiniteError, WorkerLostError, reason_of
from server.ipc.messages import ModelInfo, Pixels, Prediction, Task, TaskResult
from server.ipc.spawn import HostSpec
from server.metrics import ServerMetrics
from server.serving.job_queue import Job, JobQueue
from server.serving.latency import MAX_WAIT_FRACTION, Latency
from server.serving.supervisor import Supervisor
from server.serving.worker_group import WorkerGroup
from server.settings import Settings
from server.tracing import current_trace
from teacher_cache.errors import ImageError, ImageTypeError, LimbeckError

PROBE_SECONDS = 5.0
"""Interval between test images while a model is not ready because its outputs are NaN or infinite."""
_BUSY = "too many images are waiting; send the request again later"


def never() -> bool:
    """Default of `is_disconnected`: the client stays connected."""
    return False


class Pool:
    """A model, the images that wait for it, and its workers.

    An idle worker takes waiting images immediately, so batches of more than one image form only while all workers
    are busy. If a worker exits, only its current batch is lost.
    """

    info: ModelInfo

    def __init__(self, supervisor: Supervisor, spec: HostSpec, settings: Settings, metrics: ServerMetrics) -> None:
        self.spec, self._settings, self._metrics = spec, settings, metrics
        self._queue = JobQueue(on_failure=self._count_failure)
        self._workers = WorkerGroup(supervisor, spec, settings, self._on_results, self._on_loss, self._on_restart)
        self._latency = Latency()
        self._batch_finished = asyncio.Event()
        self._probe: asyncio.Task[None] | None = None
        self._non_finite_count = 0
        """Consecutive answers with NaN or infinite outputs."""

    @classmethod
    async def open(
        cls, supervisor: Supervisor, spec: HostSpec, settings: Settings, metrics: ServerMetrics
    ) -> Self:
        """Open a bundle and start its workers; returns when all are ready. Raises RunError if one fails."""
        pool = cls(supervisor, spec, settings, metrics)
        pool.info = await pool._workers.start()
        pool.publish_metrics()
        return pool

    # Requests

    def admit(self, images: int = 1) -> None:
        """Raise BusyError if the queue has no place for this number of images, or they would wait too long."""
        if not self._workers.is_open:
            raise BusyError("this instance of the model is closed; send the request again")
        idle = self._workers.idle_count
        limit = self._settings.max_waiting + idle
        if self._queue.waiting + images > limit:
            self._queue.drop_disconnected()
        waiting = self._queue.waiting
        wait = self._latency.estimate_wait(waiting + images - idle, self._workers.ready_count)
        max_wait = MAX_WAIT_FRACTION * self._latency.queue_timeout(self._settings.deadline)
        if waiting + images > limit or wait > max_wait:
            error = BusyError(_BUSY, retry_after=max(1, math.ceil(wait / 2)))
            self._count_failure(error, images)
            raise error

    async def predict(
        self,
        image: bytes | Pixels,
        fusion: str = "",
        deadline: float | None = None,
        is_disconnected: Callable[[], bool] = never,
    ) -> Prediction:
        """Classify one image. Raises ImageError or a RefusedError.

        image: encoded bytes, or (S, S, 3) uint8 pixels. fusion: "" is the bundle's. deadline: seconds; None is the
        server's.
        """
        prediction: Prediction = await self.run(Task(image, fusion), deadline, is_disconnected)
        return prediction

    async def run(
        self, task: Task, deadline: float | None = None, is_disconnected: Callable[[], bool] = never
    ) -> Any:
        """Run a task of any kind in a worker and return its value. Raises ImageError or a RefusedError."""
        self.admit()
        job = Job(task, asyncio.get_running_loop().create_future(), is_disconnected, time.perf_counter())
        timeout = self._latency.queue_timeout(self._settings.deadline if deadline is None else deadline)
        self._queue.add(job, timeout, on_timeout=self._dispatch)
        self._dispatch()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._queue.drop(job)
            raise
        finally:
            if job.started and (trace := current_trace.get()) is not None:
                trace.add_image(job.arrived, job.started)
            del job, task  # an error's traceback refers to this frame, and would keep the image in memory

    # State

    def problems(self) -> list[str]:
        """Reasons why this model is not ready; [] if it is."""
        problems = []
        if not self.ready_workers:
            problems.append("no worker is ready")
        if self._queue.waiting >= self._settings.max_waiting:
            problems.append(f"the queue is full ({self._queue.waiting} images)")
        if self._non_finite_count >= self._settings.non_finite:
            problems.append(f"the last {self._non_finite_count} outputs were NaN or infinite")
        return [f"{self.info.name}: {problem}" for problem in problems]

    @property
    def workers(self) -> int:
        """Number of workers that there should be."""
        return self._workers.size

    @property
    def ready_workers(self) -> int:
        """Number of workers that are idle or busy."""
        return self._workers.ready_count

    def publish_metrics(self) -> None:
        """Register this model's gauges and counters under its name and version."""
        info, labels = self.info, self._labels
        self._metrics.waiting.labels(*labels).set_function(lambda: self._queue.waiting)
        self._metrics.workers.labels(*labels).set_function(lambda: self._workers.ready_count)
        self._metrics.difference.labels(*labels).set(info.difference)
        self._metrics.info.labels(*labels, info.sha256, info.runtime, info.device).set(1)
        self._metrics.restarts.labels(*labels)
        self._metrics.decode_failures.labels(*labels)
        self._batch_metric = self._metrics.batch.labels(*labels)
        self._queued_metric = self._metrics.queued.labels(*labels)
        self._compute_metric = self._metrics.compute.labels(*labels)

    # End

    async def close(self) -> None:
        """Answer all waiting and running jobs, then close the workers."""
        while self._queue.waiting or self._workers.is_busy:
            self._batch_finished.clear()
            await self._batch_finished.wait()
        self._close_workers()

    def abort(self) -> None:
        """Close the workers now; waiting and running jobs get a BusyError."""
        self._close_workers()
        for job in [*self._queue.jobs(), *self._workers.running_jobs]:
            if not job.is_done:
                job.future.set_exception(BusyError("the server is stopping; send the request to another server"))

    def _close_workers(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
        self._workers.close()

    # Events

    def _dispatch(self) -> None:
        """Give waiting jobs to idle workers, in equal shares."""
        while self._queue.waiting and (idle := self._workers.idle_count):
            share = math.ceil(self._queue.waiting / idle)
            jobs = self._queue.take(min(share, self.info.batch))
            if not jobs:
                break
            now = time.perf_counter()
            for job in jobs:
                job.started = now
                self._queued_metric.observe(now - job.arrived)
            self._batch_metric.observe(len(jobs))
            self._workers.submit(jobs)
        if not self._queue.waiting and not self._workers.is_busy:
            self._batch_finished.set()

    def _on_results(self, jobs: list[Job], results: list[TaskResult]) -> None:
        seconds = time.perf_counter() - jobs[0].started
        self._latency.record(seconds, len(jobs))
        self._compute_metric.observe(seconds)
        self._dispatch()  # before the answers, because the worker is idle
        for job, result in zip(jobs, results, strict=True):
            self._finish(job, result)

    def _finish(self, job: Job, result: TaskResult) -> None:
        value = result.value
        if isinstance(value, NonFiniteError):
            self._count_non_finite()
        elif isinstance(value, Prediction):
            self._non_finite_count = 0
            value = Prediction(value.rows, 1000 * (job.started - job.arrived), result.compute_ms)
        if isinstance(value, LimbeckError):
            self._count_failure(value)
            if type(value) in (ImageError, ImageTypeError):
                self._metrics.decode_failures.labels(*self._labels).inc()
        if job.is_done:
            return
        if isinstance(value, LimbeckError):
            job.future.set_exception(value)
        else:
            job.future.set_result(value)

    def _on_loss(self, jobs: list[Job]) -> None:
        for job in jobs:
            error = WorkerLostError("the worker exited while computing this image; send it again")
            self._count_failure(error)
            if not job.is_done:
                job.future.set_exception(error)
        self._batch_finished.set()

    def _on_restart(self) -> None:
        self._metrics.restarts.labels(*self._labels).inc()
        self._dispatch()

    # Outputs that are NaN or infinite

    def _count_non_finite(self) -> None:
        self._non_finite_count += 1
        if self._non_finite_count == self._settings.non_finite:
            self._probe = asyncio.create_task(self._probe_until_finite())

    async def _probe_until_finite(self) -> None:
        """Classify a blank image at intervals: a model that is not ready may get no requests."""
        blank = np.zeros((self.info.size, self.info.size, 3), np.uint8)
        while self._non_finite_count >= self._settings.non_finite:
            await asyncio.sleep(PROBE_SECONDS)
            with contextlib.suppress(LimbeckError):
                await self.predict(blank)

    # Metrics

    def _count_failure(self, error: LimbeckError, images: int = 1) -> None:
        self._metrics.faults.labels(*self._labels, reason_of(error)).inc(images)

    @property
    def _labels(self) -> tuple[str, str]:
        return self.info.name, self.info.version


def all_problems(pools: Iterable[Pool]) -> list[str]:
    """Reasons why the server as a whole is not ready; [] if it is."""
    pools = list(pools)
    return [problem for pool in pools for problem in pool.problems()] if pools else ["no model is loaded"]
