"""Where objects lie: a local folder, a bucket, or what fsspec knows. Each is written wholly or not at all."""

from pathlib import Path
from typing import Protocol

from teacher_cache.errors import StoreError
from teacher_cache.storage.local import LocalStore
from teacher_cache.storage.object_store import BUCKET_SCHEMES, ObjectStore


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
    scheme_typed, slash, _ = str(where).partition(":/")
    if slash and not remote and scheme_typed in BUCKET_SCHEMES:  # else a folder called "s3:" would be made here
        raise StoreError(f"'{where}' has one slash where a URL has two; write {scheme_typed}://...")
    if not remote or scheme == "file":
        return LocalStore(Path(str(where).removeprefix("file://")))
    if scheme in BUCKET_SCHEMES:
        return ObjectStore(str(where))
    from teacher_cache.storage.fsspec_store import FsspecStore

    return FsspecStore(str(where))


def is_remote(where: str | Path) -> bool:
    return "://" in str(where)
