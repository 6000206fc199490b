"""Exclusive locks between processes, as POSIX locks on files."""

import fcntl
import os
import struct
import weakref
from pathlib import Path

FLOCK_STRUCT = "hhqqi"
"""`struct flock` of 64-bit Linux: type, whence, start, length, process id."""


class FileLock:
    """Exclusive lock on a file until `release()`, garbage collection or the end of the process.

    A POSIX lock also excludes other machines on the same network file system, and forked workers do not
    inherit it.
    """

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if another process has the lock, OSError if the file system has no locks."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            error.filename = str(path)
            raise


def is_locked(path: Path) -> bool:
    """Whether another process has the lock. A lock that this process has on the file is lost."""
    if not path.exists():
        return False
    with path.open("a", encoding="utf-8") as file:
        request = struct.pack(FLOCK_STRUCT, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        reply = fcntl.fcntl(file, fcntl.F_GETLK, request)
    lock_type: int = struct.unpack(FLOCK_STRUCT, reply)[0]
    return lock_type != fcntl.F_UNLCK
