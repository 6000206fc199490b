"""The access log: one JSON line for each request."""

import logging.handlers
import queue
import sys
from typing import Any, TextIO

from typing_extensions import override

from teacher_cache.errors import LimbeckError

log = logging.getLogger("limbeck")


def open_access_log(target: str) -> logging.Logger | None:
    """A logger that writes lines to a file, or "-" for stdout, in a background thread; None for "".

    Raises LimbeckError if the file cannot be opened.
    """
    if not target:
        return None
    try:
        handler = _LineHandler(
            target, sys.stdout if target == "-" else logging.FileHandler(target, encoding="utf-8").stream
        )
    except OSError as error:
        raise LimbeckError(f"--access-log '{target}' cannot be written: {error.strerror}") from None
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    logging.handlers.QueueListener(records, handler).start()
    logger = logging.Logger("limbeck.access", logging.INFO)
    logger.addHandler(logging.handlers.QueueHandler(records))
    return logger


class _LineHandler(logging.StreamHandler[Any]):
    """Logs an error for the first of every 1000 lines that cannot be written, e.g. because the disk is full."""

    def __init__(self, target: str, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._target, self._lost = target, 0

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if self._lost % 1000 == 0:
            lost = f"{self._lost + 1:,} lines lost" if self._lost else "1 line lost"
            log.error("--access-log '%s' cannot be written: %s; %s", self._target, sys.exception(), lost)
        self._lost += 1
