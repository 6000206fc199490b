"""Forward the output of a Ray job's processes line by line to the driver."""

import io
import os
from concurrent.futures import Future
from queue import Empty
from typing import Any, Protocol, TextIO, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.5
"""Interval at which the driver checks whether the job has finished."""


class LineQueue(Protocol):
    """Queue of lines: queue.Queue or ray.util.queue.Queue."""

    def put(self, item: str) -> None: ...

    def get(self, block: bool = True, timeout: float | None = None) -> str: ...


class Forwarder(io.TextIOBase):
    """Text stream that writes to another one and also puts each complete line in a queue."""

    def __init__(self, out: TextIO, lines: LineQueue) -> None:
        self._out, self._lines = out, lines
        self._partial_line, self._pid = "", os.getpid()

    def write(self, text: str) -> int:
        self._out.write(text)
        if os.getpid() == self._pid:  # a forked worker has no connection to Ray
            *complete, self._partial_line = (self._partial_line + text).split("\n")
            for line in complete:
                self._lines.put(line)
        return len(text)

    def flush(self) -> None:
        self._out.flush()


def create_line_queue() -> Any:
    """Queue on this machine for the lines of all processes of a job. If it fails, Ray restarts it empty."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": this_node}
    return Queue(actor_options=options)


def follow(job: "Future[T]", lines: LineQueue, out: TextIO) -> T:
    """Print the lines of a job until it finishes; return its result or raise its error."""
    while True:
        finished = job.done()  # if so, all lines are in the queue
        try:
            while True:
                print(lines.get(not finished, POLL_SECONDS), file=out, flush=True)
        except Empty:
            if finished:
                return job.result()
