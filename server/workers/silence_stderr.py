"""Silence standard error while images are decoded: image libraries print a warning for many invalid images."""

import os

_STDERR = 2


class SilencedStderr:
    """Context manager that discards what this process writes to standard error. Not thread-safe."""

    def __init__(self) -> None:
        self._devnull, self._stderr = os.open(os.devnull, os.O_WRONLY), os.dup(_STDERR)

    def __enter__(self) -> None:
        os.dup2(self._devnull, _STDERR)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._stderr, _STDERR)
