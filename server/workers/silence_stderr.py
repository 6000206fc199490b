"""Silence while strangers' images are read: the decoders' libraries remark on each on standard error."""

import os

_ERRORS = 2


class SilencedStderr:
    """While it is entered, what this process writes to standard error is lost. One thread may use it."""

    def __init__(self) -> None:
        self._nowhere, self._kept = os.open(os.devnull, os.O_WRONLY), os.dup(_ERRORS)

    def __enter__(self) -> None:
        os.dup2(self._nowhere, _ERRORS)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, _ERRORS)
