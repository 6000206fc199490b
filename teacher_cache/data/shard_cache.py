"""Shards from URLs, kept on a local disk: a folder within a limit, which all processes of a machine share.

A kept shard is named by its checksum and size, so that one that has changed is another; it is written whole and by
one process at a time, after it was found to be what the index says. What was read longest ago goes first; a reader
holds its file open, which therefore may go at any time.
"""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from teacher_cache.config import Table
from teacher_cache.errors import ShardError, UnavailableError, is_transient

SHARD_NAME = re.compile(r"[0-9a-f]{32}\.tar")
PARTIAL_SUFFIX = ".half"
LOCK_MODE = 0o666
"""The mode of a lock's file: users of one machine share the folder, whoever of them made it."""
NO_SPACE, NO_PERMISSION = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class ShardCache:
    """folder: made when something is kept. limit: bytes of all shards in it."""

    folder: str
    limit: int

    def read(self, md5: str, size: int, download: Callable[[], bytes], verify: bool = True) -> bytes:
        """A shard's bytes, from the disk or else from `download`, which answers for their checksum.

        verify: compare what was kept with the checksum, too. Raises ShardError where the folder cannot be used.
        """
        path = self._path(md5, size)
        data = self._cached(path, md5 if verify else "", size)
        return self._fetch(path, md5, size, download) if data is None else data

    def ensure(self, md5: str, size: int, download: Callable[[], bytes]) -> None:
        """Have a shard on the disk by the time that it is read."""
        path = self._path(md5, size)
        try:
            is_cached = path.stat().st_size == size
            with suppress(PermissionError):  # another user's
                os.utime(path)
        except OSError:
            is_cached = False
        if not is_cached:
            self._fetch(path, md5, size, download)

    def _path(self, md5: str, size: int) -> Path:
        return Path(self.folder, _md5(f"{md5} {size}".encode()) + ".tar")

    def _fetch(self, path: Path, md5: str, size: int, download: Callable[[], bytes]) -> bytes:
        with self._lock(path.name[:2]):  # of several processes that want it, one downloads
            data = self._cached(path, md5, size)
            if data is None:
                data = download()
                self._store(path, data)
        return data

    def _cached(self, path: Path, md5: str, size: int) -> bytes | None:
        """The bytes of a kept shard, used now; None where it is not there, or spoilt. md5: "" for any."""
        with _folder_errors(self.folder):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
            valid = len(data) == size and (not md5 or _md5(data) == md5)
            with suppress(FileNotFoundError, PermissionError):  # others may remove it, or it is another user's
                os.utime(path) if valid else path.unlink()
            return data if valid else None

    def _store(self, path: Path, data: bytes) -> None:
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with self._lock("all"), _folder_errors(self.folder):
            self._evict(len(data))
            partial.write_bytes(data)
            partial.replace(path)

    def _evict(self, size: int) -> None:
        """Remove what killed writers left, then what was read longest ago; the caller holds the lock of all."""
        cached = []
        for path in Path(self.folder).iterdir():
            with suppress(FileNotFoundError):  # another process may have found it spoilt
                if path.name.endswith(PARTIAL_SUFFIX):
                    path.unlink()
                elif SHARD_NAME.fullmatch(path.name):
                    status = path.stat()
                    cached.append((status.st_mtime_ns, status.st_size, path))
        total = sum(length for _, length, _ in cached)
        for _, length, oldest in sorted(cached):
            if total + size <= self.limit:
                break
            oldest.unlink(missing_ok=True)
            total -= length

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Waits for the lock of this name; the kernel frees a killed process's."""
        with _folder_errors(self.folder):
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            handle = _open_lock(Path(self.folder, f"lock-{name}"))
        with os.fdopen(handle, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _open_lock(lock: Path) -> int:
    """A lock's file, made where it is not there: not by O_CREAT alone, which Linux refuses in a sticky folder for
    another user's file."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(lock, os.O_RDWR)
        with suppress(FileExistsError):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, LOCK_MODE)
            os.fchmod(handle, LOCK_MODE)  # whatever the umask
            return handle


@contextmanager
def _folder_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = UnavailableError if is_transient(error) else ShardError
        advice = "make room there, or " if error.errno in NO_SPACE else ""
        if error.errno in NO_PERMISSION:
            advice = "let this user read and write there, or "
        raise kind(f"shard cache '{folder}': {error.strerror or error}; {advice}give it another folder") from None


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class ShardCacheSpec(Table):
    """Where shards from URLs are kept, if anywhere."""

    shard_cache: str = ""
    """A folder on a local disk, which any number of processes of this machine may share."""
    shard_cache_gib: Annotated[float, Field(gt=0)] = 50.0
    """Of shards in it; those that were read longest ago make room."""

    @field_validator("shard_cache")
    @classmethod
    def _is_on_this_machine(cls, path: str) -> str:
        if "://" in path:
            raise ValueError(f"'{path}' is a URL, and shards are kept in a local folder; give its path")
        return path
