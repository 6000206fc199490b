"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any


def until(seen: Callable[[], Any], seconds: float = 150) -> Any:
    """Waits until something is true, and returns it."""
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
    return found
