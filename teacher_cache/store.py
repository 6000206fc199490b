"""Where objects lie: a local folder, a bucket, or what fsspec knows. Each is written wholly or not at all."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from teacher_cache.bucket import BUCKETS, Bucket
from teacher_cache.disk import create_durably, make_folder, write_durably
from teacher_cache.errors import StoreError

ABANDONED_SECONDS = 3600


class Store(Protocol):
    """Bytes by name. A name's parts are separated by "/"; what stands there is always whole."""

    where: str

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def put(self, name: str, data: bytes) -> None:
        """Durable when it returns; replaces what was there."""

    def create(self, name: str, data: bytes) -> bool:
        """As put, unless something is there already: then nothing is changed and it returns False."""

    def remove(self, name: str) -> None:
        """Whether it was there or not."""

    def sweep(self, folder: str) -> None:
        """Remove what was left half-written more than an hour ago by a process that was killed."""

    def is_empty(self) -> bool:
        """Whether there is nothing at all yet."""

    def names(self, folder: str) -> set[str]:
        """Of every object directly in a folder; none where there is no such folder."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object directly in a folder, by its name there; {} where there is no such folder."""


def open_store(where: str | Path) -> Store:
    """A store for a local path, or for a URL such as s3://bucket/prefix. Nothing is made or looked for yet.

    Object stores take their keys and endpoint from the environment, as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL. Raises
    StoreError for what is no place.
    """
    scheme, remote, _ = str(where).partition("://")
    mistyped, slash, _ = str(where).partition(":/")
    if slash and not remote and mistyped in BUCKETS:  # else a folder called "s3:" would be made here
        raise StoreError(f"'{where}' has one slash where a URL has two; write {mistyped}://...")
    if not remote or scheme == "file":
        return Folder(Path(str(where).removeprefix("file://")))
    if scheme in BUCKETS:
        return Bucket(str(where))
    from teacher_cache.filesystem import FileSystem  # only rarer places need fsspec

    return FileSystem(str(where))


def is_remote(where: str | Path) -> bool:
    return "://" in str(where)


def worker_start(workers: int, *places: str | Path) -> str | None:
    """How DataLoader workers of these places begin: neither threads nor locks live well through a fork."""
    return "spawn" if workers and any(map(is_remote, places)) else None


class Folder:
    """A local folder; it and its folders are made when something is put there."""

    def __init__(self, path: Path) -> None:
        self._path, self.where = path, str(path)

    def get(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        write_durably(self._parent(name), data)

    def create(self, name: str, data: bytes) -> bool:
        return create_durably(self._parent(name), data)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        for left in (self._path / folder).glob(".*.tmp"):
            with suppress(FileNotFoundError):  # another job sweeps too
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()

    def is_empty(self) -> bool:
        try:
            return all(path.name.startswith(".") for path in self._path.iterdir())  # what a killed process left
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False

    def names(self, folder: str) -> set[str]:
        try:
            with os.scandir(self._path / folder) as entries:
                return {entry.name for entry in entries if not entry.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            with os.scandir(self._path / folder) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.startswith(".")}
        except FileNotFoundError:
            return {}

    def _parent(self, name: str) -> Path:
        path = self._path / name
        make_folder(path.parent)
        return path
