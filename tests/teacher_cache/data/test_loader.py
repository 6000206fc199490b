"""Workers exit with their parent and pass errors on to it."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from teacher_cache.data.loader import load
from teacher_cache.errors import LimbeckError, ShardError, UnavailableError
from teacher_cache.loading.worker import POLL_SECONDS

JOB = """
import time
from teacher_cache.data.loader import load

class Large:
    def items(self, worker, workers):
        while True:
            yield bytes(1_000_000)  # more than a pipe holds

for _ in load(Large(), 2):
    print("started", flush=True)
    time.sleep(60)
"""


def test_workers_of_a_killed_process_end_though_nobody_takes_what_they_made() -> None:
    process = subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, encoding="utf-8")
    with process:
        assert process.stdout and process.stdout.readline() == "started\n"
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        time.sleep(0.5)  # until both wait at their pipes
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
    assert psutil.wait_procs(workers, POLL_SECONDS + 10)[1] == []


class Failing:
    """Yields 1 and raises an error, in a worker process if it is read by one."""

    def __init__(self, error: Exception, workers: int) -> None:
        self._error, self._workers, self._receiver = error, workers, os.getpid()

    def items(self, worker: int, workers: int) -> Iterator[int]:
        assert (os.getpid() != self._receiver) == (self._workers > 0)
        yield 1
        raise self._error


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("places", [(), ("s3://bucket/shards",)])  # workers by fork, by another method
@pytest.mark.parametrize(
    "error",
    [
        ShardError("shard 'a.tar' is missing; restore it"),
        UnavailableError("a: teacher_cache.errors.UnavailableError: b "),
        OSError(errno.ENOSPC, "No space left on device", "/shm/a"),
    ],
)
def test_an_error_of_a_worker_arrives_as_it_was_raised(
    error: LimbeckError | OSError, places: tuple[str, ...], workers: int
) -> None:
    items = load(Failing(error, workers), workers, *places)
    assert next(items) == 1
    with pytest.raises(type(error)) as raised:
        list(items)
    assert type(raised.value) is type(error) and str(raised.value) == str(error)
    assert raised.value.args == error.args and raised.value.__cause__ is None
    assert vars(raised.value) == vars(error)
    assert getattr(raised.value, "filename", None) == getattr(error, "filename", None)
