"""What a process of a Ray job says, forwarded line by line to its driver."""

import io
import os
from concurrent.futures import Future
from queue import Empty
from typing import Any, Protocol, TextIO, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.5
"""How often the driver looks whether the job has ended."""


class LineQueue(Protocol):
    """A queue, as queue.Queue and ray.util.queue.Queue are."""

    def put(self, item: str) -> None: ...

    def get(self, block: bool = True, timeout: float | None = None) -> str: ...


class Forwarder(io.TextIOBase):
    """A text stream before another, which puts each whole line in a queue too."""

    def __init__(self, out: TextIO, lines: LineQueue) -> None:
        self._out, self._lines = out, lines
        self._begun, self._process = "", os.getpid()

    def write(self, text: str) -> int:
        self._out.write(text)
        if os.getpid() == self._process:  # a forked DataLoader worker has no connection to Ray
            *whole, self._begun = (self._begun + text).split("\n")
            for line in whole:
                self._lines.put(line)
        return len(text)

    def flush(self) -> None:
        self._out.flush()


def create_line_queue() -> Any:
    """A queue on this machine, for the processes of a job; Ray starts a lost one again, without its lines."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return Queue(actor_options=options)


def follow(job: "Future[T]", lines: LineQueue, out: TextIO) -> T:
    """Print the lines of a job until it has ended; returns what it returned, or raises what it raised."""
    while True:
        ended = job.done()  # then every line is in the queue
        try:
            while True:
                print(lines.get(not ended, POLL_SECONDS), file=out, flush=True)
        except Empty:
            if ended:
                return job.result()
