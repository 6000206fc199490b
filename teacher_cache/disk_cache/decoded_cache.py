"""A cache of decoded shards in a local folder, which all processes of a machine may share.

A file has the pixels of one shard; its name is a hash of the shard's contents and of the decoder. Files are
written atomically, by one process at a time. The least recently used files are deleted first, but neither files in
use nor other shards of the same data set: those would be needed again before the new one.
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from pydantic import Field, field_validator

from teacher_cache.config import Table
from teacher_cache.console import format_bytes, log_line
from teacher_cache.disk_cache.pixel_file import (
    DamagedFileError,
    PixelFile,
    Pixels,
    delete_unused,
    file_bytes,
    write_pixels,
)
from teacher_cache.disk_cache.shared_folder import NO_PERMISSION, NO_SPACE, SharedFolder

SUFFIX = ".pixels"
PARTIAL_SUFFIX = ".pixels-half"
NAME = re.compile(r"[0-9a-f]{32}" + re.escape(SUFFIX))


class DecodedCacheSpec(Table):
    """The local cache for decoded images."""

    decoded_cache: str = ""
    """Folder on a local disk for decoded images, which all processes of this machine may share; "" disables it."""
    decoded_cache_gib: Annotated[float, Field(gt=0)] = 50.0
    """Maximum size in GiB. It pays if all decoded images fit; a shard that does not fit is decoded each time."""

    @field_validator("decoded_cache")
    @classmethod
    def _is_local(cls, path: str) -> str:
        if "://" in path:
            raise ValueError(f"'{path}' is a URL, but the decoded cache is a local folder; give its path")
        return path


@dataclass(frozen=True)
class DecodedCache:
    """limit: maximum bytes of all files. names: of each shard of a data set. key: "machine.decoded_cache_gib"."""

    folder: str
    limit: int
    names: tuple[str, ...]
    key: str
    is_writable: bool

    @property
    def shared(self) -> SharedFolder:
        return SharedFolder(Path(self.folder), "decoded cache")


def open_decoded_cache(spec: DecodedCacheSpec, names: Sequence[str], table: str) -> DecodedCache:
    """Create the folder of a recipe's decoded cache. table: the recipe table that has `spec`.

    Logs one line if the folder is read-only. Raises ShardError if it cannot be created.
    """
    folder = Path(spec.decoded_cache)
    with SharedFolder(folder, "decoded cache").errors():
        folder.mkdir(parents=True, exist_ok=True)
    is_writable = os.access(folder, os.W_OK | os.X_OK)
    if not is_writable:
        log_line(
            f"{table}.decoded_cache = '{folder}' is not writable for this user; only the shards that are already "
            "in it are used"
        )
    limit, key = int(spec.decoded_cache_gib * 2**30), f"{table}.decoded_cache_gib"
    return DecodedCache(str(folder), limit, tuple(names), key, is_writable)


class DecodedImages:
    """Reads decoded images of a process from the cache, and writes the shards that are missing.

    decode: makes the pixels of an encoded image. count_pixels: their number by the header, 0 if unknown.
    open_shards: maximum number of open files.
    """

    def __init__(
        self,
        cache: DecodedCache,
        decode: Callable[[bytes], Pixels],
        count_pixels: Callable[[bytes], int],
        open_shards: int,
    ) -> None:
        self._cache, self._decode, self._count_pixels = cache, decode, count_pixels
        self._folder, self._own = Path(cache.folder), frozenset(cache.names)
        self._files: LRUCache[int, PixelFile | None] = LRUCache(open_shards)
        self._verified: dict[int, tuple[int, NDArray[np.bool_]]] = {}
        self._can_write = cache.is_writable
        self._without_space, self._damaged, self._unusable = set[int](), set[int](), set[int]()

    def image(self, shard: int, row: int, images: Callable[[], Sequence[bytes]]) -> Pixels | None:
        """The (H, W, 3) pixels of a row in a memory map, read-only; None if the caller has to decode the image.

        images: returns the encoded images of all rows of the shard. Raises ShardError if the folder is unusable.
        """
        if shard not in self._files:
            self._files[shard] = self._open(shard, images)
        file = self._files[shard]
        if file is None:
            return None
        try:
            return file.image(row, self._flags(shard, file))
        except DamagedFileError as error:
            self._drop(shard, error)
            del self._files[shard]
            return self.image(shard, row, images)

    def _flags(self, shard: int, file: PixelFile) -> NDArray[np.bool_]:
        """(rows,) which rows of the file this process has verified."""
        inode, flags = self._verified.get(shard, (-1, None))
        if flags is None or inode != file.inode:
            flags = np.zeros(file.rows, np.bool_)
            self._verified[shard] = file.inode, flags
        return flags

    def _open(self, shard: int, images: Callable[[], Sequence[bytes]]) -> PixelFile | None:
        if shard in self._unusable:
            return None
        encoded = images()
        file = self._map(shard, len(encoded))
        if file or not self._can_write or shard in self._without_space:
            return file
        try:
            with self._cache.shared.lock(self._cache.names[shard][:2]):  # only one process decodes it
                file = self._map(shard, len(encoded))
                return file or self._make(shard, encoded)
        except OSError as error:
            if error.errno not in NO_SPACE + NO_PERMISSION:
                raise
            self._can_write = False
            log_line(
                f"decoded cache '{self._folder}': {error.strerror}; this process writes no more shards to it, and "
                "decodes the images that are not in it"
            )
            return None

    def _map(self, shard: int, rows: int) -> PixelFile | None:
        """Open the file of a shard and update its time of use; None if it is missing or damaged."""
        path = self._path(shard)
        with self._cache.shared.errors():
            try:
                file = PixelFile(path, self._cache.names[shard], rows)
            except (FileNotFoundError, PermissionError):
                return None
            except DamagedFileError as error:
                self._drop(shard, error)
                return None
            with suppress(FileNotFoundError, PermissionError):  # it was evicted, or another user owns it
                os.utime(path)
        return file

    def _drop(self, shard: int, error: DamagedFileError) -> None:
        """Delete a damaged file. If that fails, or does not help, this process does not open it again."""
        path = self._path(shard)
        log_line(f"decoded shard '{path}' is damaged: {error}; decoding its images again")
        if shard in self._damaged:
            self._unusable.add(shard)
        self._damaged.add(shard)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._unusable.add(shard)

    def _make(self, shard: int, images: Sequence[bytes]) -> PixelFile | None:
        """Decode a shard into its file, and open it; None if it does not fit within the limit."""
        path, name = self._path(shard), self._cache.names[shard]
        partial = path.with_suffix(PARTIAL_SUFFIX)
        sizes = [3 * self._count_pixels(image) for image in images]
        file = self._reserve(partial, file_bytes(sizes))
        if file is None:
            self._log_without_space(shard, file_bytes(sizes))
            return None
        try:
            with file:
                write_pixels(file, name, images, sizes, self._decode)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return self._map(shard, len(images))

    def _reserve(self, partial: Path, size: int) -> BinaryIO | None:
        """Create and lock a partial file of its final size, or return None if that exceeds the limit."""
        with self._cache.shared.lock("all"):
            if not self._evict(size):
                return None
            partial.unlink(missing_ok=True)
            file = partial.open("xb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                _allocate(file.fileno(), size)
            except BaseException:
                file.close()
                partial.unlink()
                raise
            return file

    def _evict(self, size: int) -> bool:
        """Make space for a file. Returns whether there is enough. Needs the lock "all"."""
        if size > self._cache.limit:
            return False
        total, idle = 0, []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError, PermissionError):
                if path.name.endswith(PARTIAL_SUFFIX) and delete_unused(path):
                    continue  # a killed writer left it
                if path.name.endswith((SUFFIX, PARTIAL_SUFFIX)):
                    status = path.stat()
                    total += status.st_size
                    if NAME.fullmatch(path.name) and path.stem not in self._own:
                        idle.append((status.st_mtime_ns, status.st_size, path))
        for _, length, oldest in sorted(idle):
            if total + size <= self._cache.limit:
                break
            with suppress(FileNotFoundError, PermissionError):
                if delete_unused(oldest):
                    total -= length
        return total + size <= self._cache.limit

    def _log_without_space(self, shard: int, size: int) -> None:
        """Log one line for the first shard of this process that does not fit."""
        if not self._without_space:
            log_line(
                f"{self._cache.key} = {self._cache.limit / 2**30:g} has no space for the {format_bytes(size)} of "
                f"decoded shard {shard}; shards that do not fit are decoded in every epoch; increase it"
            )
        self._without_space.add(shard)

    def _path(self, shard: int) -> Path:
        return self._folder / f"{self._cache.names[shard]}{SUFFIX}"


def _allocate(handle: int, size: int) -> None:
    """Set the size of an empty file. Raises OSError if the disk has no space for it."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot reserve
            raise
        os.ftruncate(handle, size)
