"""Object storage behind one interface: a local folder, a bucket, or any fsspec file system."""

from pathlib import Path
from typing import Protocol

from teacher_cache.errors import StoreError
from teacher_cache.storage.local import LocalStore
from teacher_cache.storage.object_store import BUCKET_SCHEMES, ObjectStore


class Store(Protocol):
    """Objects by name. The parts of a name are separated by "/". Readers never see a partly written object."""

    where: str
    """Path or URL of the store, as messages show it."""

    def get(self, name: str) -> bytes:
        """The object. Raises FileNotFoundError if it does not exist."""

    def put(self, name: str, data: bytes) -> None:
        """Write or replace an object. It is durable when this returns."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object durably; return False and change nothing if it exists."""

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""

    def sweep(self, folder: str) -> None:
        """Remove temporary files that killed processes left in a folder more than an hour ago."""

    def is_empty(self) -> bool:
        """Whether the store contains no objects."""

    def names(self, folder: str) -> set[str]:
        """Names of all objects directly in a folder, without the folder; empty if it does not exist."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of all objects directly in a folder, by name without the folder; {} if it does not exist."""


def open_store(where: str | Path) -> Store:
    """The store at a local path or at a URL such as s3://bucket/prefix. Nothing is read or created yet.

    Object stores read their keys and endpoint from the environment, e.g. AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
    Raises StoreError if the URL is invalid or read-only.
    """
    scheme, remote, _ = str(where).partition("://")
    scheme_before_slash, slash, _ = str(where).partition(":/")
    if slash and not remote and scheme_before_slash in BUCKET_SCHEMES:  # else it would be a local folder "s3:"
        raise StoreError(f"'{where}' has one slash after the scheme; write {scheme_before_slash}://...")
    if not remote or scheme == "file":
        return LocalStore(Path(str(where).removeprefix("file://")))
    if scheme in BUCKET_SCHEMES:
        return ObjectStore(str(where))
    from teacher_cache.storage.fsspec_store import FsspecStore

    return FsspecStore(str(where))


def is_remote(where: str | Path) -> bool:
    """Whether this is a URL, not a local path."""
    return "://" in str(where)
