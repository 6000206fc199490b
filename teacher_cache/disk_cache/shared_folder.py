"""A folder that several processes and users of a machine share: its locks, and its errors as LimbeckErrors."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from teacher_cache.errors import ShardError, UnavailableError, is_transient

PARTIAL_SUFFIX = ".half"
LOCK_MODE = 0o666
"""Mode of the lock files: several users of a machine may share the folder."""
NO_SPACE, NO_PERMISSION = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class SharedFolder:
    """path: created with the first lock. title: its name in messages, such as "shard cache"."""

    path: Path
    title: str

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an exclusive lock. The kernel releases it if the process is killed. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(self.path / f"lock-{name}")
        with os.fdopen(handle, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Convert an OSError to a ShardError, or to an UnavailableError if it is transient."""
        try:
            yield
        except OSError as error:
            kind = UnavailableError if is_transient(error) else ShardError
            advice = "free some space, or " if error.errno in NO_SPACE else ""
            if error.errno in NO_PERMISSION:
                advice = "give this user read and write permission, or "
            reason = error.strerror or error
            raise kind(f"{self.title} '{self.path}': {reason}; {advice}choose another folder") from None


def _open_lock(lock: Path) -> int:
    """Open or create a lock file.

    O_CREAT alone fails for another user's file in a sticky folder (Linux, fs.protected_regular).
    """
    while True:
        with suppress(FileNotFoundError):
            return os.open(lock, os.O_RDWR)
        with suppress(FileExistsError):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, LOCK_MODE)
            os.fchmod(handle, LOCK_MODE)  # the umask may have removed permissions
            return handle
