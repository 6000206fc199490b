"""Retry with exponential backoff for temporary network errors."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from teacher_cache.rng import generator

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.2
MAX_TOTAL_SECONDS = 25.0
"""No retry starts after this time, so that an unreachable host is reported within a minute."""

T = TypeVar("T")


def retry(operation: Callable[[], T], is_transient: Callable[[Exception], bool]) -> T:
    """Return the result of `operation`, which is retried up to ATTEMPTS times if its error is transient.

    operation: must be idempotent. Raises its last error.
    """
    started, jitter = time.monotonic(), generator("retry", os.getpid(), time.monotonic_ns())
    for attempt in range(ATTEMPTS - 1):
        try:
            return operation()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - started > MAX_TOTAL_SECONDS:
                raise
        time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * jitter.uniform(0.5, 1.0))
    return operation()
