"""Lock a file from another process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from clean_process import start_process
from wait import until

from teacher_cache.storage.file_lock import FileLock, is_locked


@contextmanager
def held_by_another(path: Path) -> Iterator[psutil.Process]:
    """Yield a stopped process that has the lock. If resumed, it releases the lock and stops again."""
    process = start_process(_hold_and_stop, path)
    until(lambda: is_locked(path) and psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    yield psutil.Process(process.pid)
    process.kill()
    process.join()


def _hold_and_stop(path: Path) -> None:
    lock = FileLock(path)
    os.kill(os.getpid(), signal.SIGSTOP)
    lock.release()
    os.kill(os.getpid(), signal.SIGSTOP)
