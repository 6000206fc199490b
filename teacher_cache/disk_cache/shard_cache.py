"""A cache of remote shards in a local folder, which all processes of a machine may share.

A file is named by checksum and size of its shard, so that a changed shard has another file. Files are written
atomically, by one process at a time, after verification. The least recently read file is evicted first; a reader
has the file open, so that it may be deleted at any time.
"""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from teacher_cache.config import Table
from teacher_cache.disk_cache.shared_folder import PARTIAL_SUFFIX, SharedFolder

SHARD_NAME = re.compile(r"[0-9a-f]{32}\.tar")


@dataclass(frozen=True)
class ShardCache:
    """folder: created on the first write. limit: maximum bytes of all shards in it."""

    folder: str
    limit: int

    def read(self, md5: str, size: int, download: Callable[[], bytes], verify: bool = True) -> bytes:
        """Return a shard's bytes from the disk, or from `download`, which must verify the checksum itself.

        verify: also verify the checksum of a cached file. Raises ShardError if the folder cannot be used.
        """
        path = self._path(md5, size)
        data = self._cached(path, md5 if verify else "", size)
        return self._fetch(path, md5, size, download) if data is None else data

    def ensure(self, md5: str, size: int, download: Callable[[], bytes]) -> None:
        """Download a shard unless it is cached."""
        path = self._path(md5, size)
        try:
            is_cached = path.stat().st_size == size
            with suppress(PermissionError):  # the file of another user
                os.utime(path)
        except OSError:
            is_cached = False
        if not is_cached:
            self._fetch(path, md5, size, download)

    @property
    def _shared(self) -> SharedFolder:
        return SharedFolder(Path(self.folder), "shard cache")

    def _path(self, md5: str, size: int) -> Path:
        return Path(self.folder, _md5(f"{md5} {size}".encode()) + ".tar")

    def _fetch(self, path: Path, md5: str, size: int, download: Callable[[], bytes]) -> bytes:
        with self._shared.errors(), self._shared.lock(path.name[:2]):  # only one process downloads it
            data = self._cached(path, md5, size)
            if data is None:
                data = download()
                self._store(path, data)
        return data

    def _cached(self, path: Path, md5: str, size: int) -> bytes | None:
        """Read a cached shard and update its time of use; None if it is missing or damaged.

        md5: "" skips the checksum.
        """
        with self._shared.errors():
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
            valid = len(data) == size and (not md5 or _md5(data) == md5)
            with suppress(
                FileNotFoundError, PermissionError
            ):  # another process removed it, or another user owns it
                os.utime(path) if valid else path.unlink()
            return data if valid else None

    def _store(self, path: Path, data: bytes) -> None:
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with self._shared.errors(), self._shared.lock("all"):
            self._evict(len(data))
            partial.write_bytes(data)
            partial.replace(path)

    def _evict(self, size: int) -> None:
        """Delete partial files of killed writers, then the least recently read shards. Needs the lock "all"."""
        cached = []
        for path in Path(self.folder).iterdir():
            with suppress(FileNotFoundError):  # another process may have deleted it
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


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class ShardCacheSpec(Table):
    """The local cache for shards at URLs."""

    shard_cache: str = ""
    """Folder on a local disk, which all processes of this machine may share; "" disables the cache."""
    shard_cache_gib: Annotated[float, Field(gt=0)] = 50.0
    """Maximum size in GiB; the least recently read shards are evicted."""

    @field_validator("shard_cache")
    @classmethod
    def _is_on_this_machine(cls, path: str) -> str:
        if "://" in path:
            raise ValueError(f"'{path}' is a URL, but the shard cache is a local folder; give its path")
        return path
