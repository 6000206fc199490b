"""Wait for another process."""

import time
from collections.abc import Callable
from typing import Any


def until(seen: Callable[[], Any], seconds: float = 150) -> Any:
    """Wait until `seen` returns a true value; returns it."""
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)
    return found
