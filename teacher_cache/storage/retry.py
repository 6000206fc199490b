"""Doing again what a network failed to do: a few times, after pauses that double."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from teacher_cache.rng import generator

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.2
MAX_TOTAL_SECONDS = 25.0
"""After which nothing is begun again; one where nobody listens is told of within a minute."""

T = TypeVar("T")


def retry(operation: Callable[[], T], is_transient: Callable[[Exception], bool]) -> T:
    """What `operation` returns; where it fails for a reason that may pass, it is done again. It must bear that.

    Raises its last error.
    """
    started, jitter = time.monotonic(), generator("retry", os.getpid(), time.monotonic_ns())
    for attempt in range(ATTEMPTS - 1):
        try:
            return operation()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - started > MAX_TOTAL_SECONDS:
                raise
        time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * jitter.uniform(0.5, 1.0))  # many clients fail at one time
    return operation()
