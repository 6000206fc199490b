"""A file that one process at a time may hold: who works in the folder it lies in."""

import fcntl
import os
import struct
import weakref
from pathlib import Path

FLOCK_STRUCT = "hhqqi"
"""struct flock of 64-bit Linux: type, whence, start, length, process."""


class FileLock:
    """This process's hold of a file, until it is released or forgotten, or the process dies.

    A POSIX lock: other machines on one file system see it, and a loader's forked workers do not inherit it.
    """

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError where another process holds it, and OSError where files cannot be locked."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            error.filename = str(path)
            raise


def is_locked(path: Path) -> bool:
    """Whether another process holds it. Asking disturbs no other, but loses a claim of one's own."""
    if not path.exists():
        return False
    with path.open("a") as file:
        request = struct.pack(FLOCK_STRUCT, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        reply = fcntl.fcntl(file, fcntl.F_GETLK, request)
    lock_type: int = struct.unpack(FLOCK_STRUCT, reply)[0]
    return lock_type != fcntl.F_UNLCK
