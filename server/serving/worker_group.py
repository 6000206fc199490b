"""The worker processes of one model: start them, replace those that exit, and close them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from server.ipc.messages import ModelInfo, TaskResult
from server.ipc.spawn import HostSpec
from server.serving.job_queue import Job
from server.serving.supervisor import ModelHost, Supervisor
from server.serving.worker_client import WorkerClient, WorkerState
from server.settings import Settings, default_workers
from teacher_cache.distributed.machine import cores, memory_bytes
from teacher_cache.errors import LimbeckError, RunError

START_SECONDS = 300
"""Time limit for a worker to become ready; torch.compile takes minutes."""
MAX_RESTART_PAUSE_SECONDS = 5.0

log = logging.getLogger("limbeck")


def shared_device_warning(info: ModelInfo, device_type: str, workers: int) -> str:
    """A line if several workers of a model share a GPU; "" on a CPU."""
    if workers == 1 or device_type == "cpu":
        return ""
    return (
        f"{workers} workers of {info.name} share the device {info.device}: each has its own copy of the weights, "
        f"and they compute in turn; --workers 1 with a larger --batch (now {info.batch}) needs less memory"
    )


class WorkerGroup:
    """The workers of one model.

    on_results: called with the jobs of a finished batch and their results.
    on_loss: called with the jobs of a worker that exited ([] if it was idle).
    on_restart: called when a worker that exited has been replaced.
    """

    info: ModelInfo
    """Set by `start`."""
    size: int
    """Number of workers that there should be. Set by `start`."""

    def __init__(
        self,
        supervisor: Supervisor,
        spec: HostSpec,
        settings: Settings,
        on_results: Callable[[list[Job], list[TaskResult]], None],
        on_loss: Callable[[list[Job]], None],
        on_restart: Callable[[], None],
    ) -> None:
        self._supervisor, self._spec, self._settings = supervisor, spec, settings
        self._on_results, self._on_loss, self._on_restart = on_results, on_loss, on_restart
        self._host: ModelHost | None = None
        self._ready = set[WorkerClient]()
        self._idle: list[WorkerClient] = []
        """Those that are idle, in the order of their last batch."""
        self._replacements = set[asyncio.Task[None]]()
        self.is_open = False

    async def start(self) -> ModelInfo:
        """Open the bundle and start all workers; returns when they are ready. Raises RunError if one fails."""
        self._host = await self._supervisor.open(self._spec)
        self.size = self._settings.workers or default_workers(self._host.device_type, cores(), memory_bytes())
        starts = [self._start_worker(check_runtime=number == 0) for number in range(self.size)]
        try:
            infos = await asyncio.gather(*starts, return_exceptions=True)
            for info in infos:
                if isinstance(info, BaseException):
                    raise info
        except BaseException:  # also asyncio.CancelledError
            self.close()
            raise
        assert isinstance(infos[0], ModelInfo)
        self.info, self.is_open = infos[0], True
        for _ in range(self.size - self.ready_count):  # those that have exited again
            self._replace_worker()
        if warning := shared_device_warning(self.info, self._host.device_type, self.size):
            log.warning("%s", warning)
        return self.info

    @property
    def ready_count(self) -> int:
        """Number of workers that are idle or busy."""
        return len(self._ready)

    @property
    def idle_count(self) -> int:
        """Number of idle workers."""
        return len(self._idle)

    @property
    def is_busy(self) -> bool:
        """Whether a worker computes a batch."""
        return len(self._ready) > len(self._idle)

    @property
    def running_jobs(self) -> list[Job]:
        """The jobs of all batches that are being computed."""
        return [job for worker in self._ready for job in worker.jobs]

    def submit(self, jobs: list[Job]) -> None:
        """Send a batch to the idle worker that was used last: its CPU caches are warm."""
        worker = self._idle.pop()
        worker.submit(jobs, self._settings.compute_seconds, partial(self._kill, worker))

    def close(self) -> None:
        """Close the connections of all workers and of their host; they finish their batches and exit."""
        self.is_open = False
        for task in self._replacements:
            task.cancel()
        self._idle.clear()
        for worker in self._ready:
            worker.close()
        if self._host is not None:
            self._host.close()

    async def _start_worker(self, check_runtime: bool) -> ModelInfo:
        """Start one worker; returns when it is ready. Raises RunError, or OSError if the host has exited."""
        assert self._host is not None
        connection = self._host.fork(check_runtime)
        worker = WorkerClient(self._on_worker_results, self._on_disconnect)
        try:
            async with asyncio.timeout(START_SECONDS):
                info = await worker.connect(connection)
            if worker.state is WorkerState.CLOSING:
                raise EOFError
        except BaseException as error:  # also asyncio.CancelledError
            worker.close()
            if isinstance(error, TimeoutError):
                raise RunError(
                    f"'{self._spec.folder}' is not ready after {START_SECONDS} s; see the log"
                ) from None
            if isinstance(error, EOFError):
                raise RunError(f"a worker for '{self._spec.folder}' exited while starting; see the log") from None
            raise
        self._ready.add(worker)
        self._idle.append(worker)
        return info

    def _on_worker_results(self, worker: WorkerClient, jobs: list[Job], results: list[TaskResult]) -> None:
        self._idle.append(worker)
        self._on_results(jobs, results)

    def _on_disconnect(self, worker: WorkerClient) -> None:
        if worker not in self._ready:  # `_start_worker` raises an error
            return
        self._ready.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        self._on_loss(worker.jobs)
        if self.is_open:
            log.warning("a worker of %s exited; starting another", self.info.name)
            self._replace_worker()

    def _kill(self, worker: WorkerClient) -> None:
        seconds = self._settings.compute_seconds
        log.error("a worker of %s exceeded compute_seconds (%g s); killing it", self.info.name, seconds)
        worker.kill()

    def _replace_worker(self) -> None:
        task = asyncio.create_task(self._retry_start())
        self._replacements.add(task)  # asyncio keeps only a weak reference
        task.add_done_callback(self._replacements.discard)

    async def _retry_start(self) -> None:
        """Start a worker; on failure, try again after growing pauses."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                await self._start_worker(check_runtime=False)
                break
            except OSError:  # the host has exited
                await self._replace_host()
            except LimbeckError as error:
                log.error("a worker of %s does not start: %s", self.info.name, error)
            pause = min(max(2 * pause, 0.1), MAX_RESTART_PAUSE_SECONDS)
        self._on_restart()

    async def _replace_host(self) -> None:
        """Open the same bundle in another process."""
        try:
            host = await self._supervisor.open(replace(self._spec, card=self.info.card))
        except (LimbeckError, OSError) as error:
            log.error("%s is unavailable: %s", self.info.name, error)
            return
        if self._host is not None:
            self._host.close()
        self._host = host
