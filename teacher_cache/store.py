"""Where objects lie: a local folder, a bucket, or what fsspec knows. Each is written wholly or not at all."""

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import obstore
import obstore.store
from obstore.exceptions import AlreadyExistsError, BaseError

from teacher_cache.disk import create_durably, make_folder, write_durably
from teacher_cache.errors import StoreError

BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
"""URL schemes that obstore reads and writes."""
RETRY: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
"""Of an object store's requests; every write here can be made twice without harm."""
CONNECT_TIMEOUT = "10 seconds"
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

    Object stores take their keys and endpoint from the environment, as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL.
    """
    scheme, remote, _ = str(where).partition("://")
    if not remote or scheme == "file":
        return Folder(Path(str(where).removeprefix("file://")))
    if scheme in BUCKETS:
        return Bucket(str(where))
    from teacher_cache.filesystem import FileSystem  # only rarer places need fsspec

    return FileSystem(str(where))


def is_remote(where: str | Path) -> bool:
    return "://" in str(where)


def worker_start(workers: int, *places: str | Path) -> str | None:
    """How DataLoader workers of these places begin: an object store's threads do not live through a fork."""
    remote = any(is_remote(place) and not str(place).startswith("http") for place in places)
    return "spawn" if workers and remote else None


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


class Bucket:
    """A prefix in an object store: S3 and what speaks its protocol, Google's, or Azure's."""

    def __init__(self, url: str) -> None:
        self.where = url
        try:
            options: Any = {"connect_timeout": CONNECT_TIMEOUT, "allow_http": True}
            self._store = obstore.store.from_url(url, client_options=options, retry_config=RETRY)
        except (BaseError, ValueError) as error:
            raise _told(url, error) from None

    def get(self, name: str) -> bytes:
        with self._told(name):
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "there is no such object", f"{self.where}/{name}") from None

    def put(self, name: str, data: bytes) -> None:
        with self._told(name):
            _put(self._store, name, data)

    def create(self, name: str, data: bytes) -> bool:
        with self._told(name):
            try:
                _put(self._store, name, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def remove(self, name: str) -> None:
        with self._told(name), suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def sweep(self, folder: str) -> None:
        """Nothing to do: an object store shows no object before it is whole."""

    def is_empty(self) -> bool:
        with self._told(""):
            return not next(iter(obstore.list(self._store, chunk_size=1)), [])

    def names(self, folder: str) -> set[str]:
        return set(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        with self._told(folder):
            listed = obstore.list_with_delimiter(self._store, folder or None)["objects"]
        return {found["path"].rpartition("/")[2]: found["size"] for found in listed}

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turns what the store says into a line for the user."""
        try:
            yield
        except BaseError as error:
            raise _told(f"{self.where}/{name}".rstrip("/"), error) from None


def _put(store: Any, name: str, data: bytes, mode: Any = "overwrite") -> None:
    try:
        obstore.put(store, name, data, mode=mode)
    except FileNotFoundError as error:  # so obstore calls a bucket that is not there
        raise BaseError(str(error)) from None


def _told(url: str, error: Exception) -> StoreError:
    said = " ".join(str(error).partition("\n\nDebug source")[0].split())
    answer = re.search(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", said)
    reason = ": ".join(part for part in answer.groups() if part) if answer else said[:300]
    return StoreError(f"'{url}' cannot be reached: {reason}; check the address, the keys and the endpoint")
