"""Store for every scheme that fsspec can write, such as hdfs://, sftp:// or memory://."""

from contextlib import suppress
from typing import Any

import fsspec

from teacher_cache.errors import StoreError


class FsspecStore:
    """`Store` over fsspec. A killed write may leave an incomplete object; the marker's checksum reveals it."""

    def __init__(self, url: str) -> None:
        self.where = url
        try:
            fs_and_root: tuple[Any, str] = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"'{url}' cannot be reached: {error}; check the address") from None
        self._fs, self._root = fs_and_root
        if not hasattr(self._fs, "pipe_file") or self._fs.protocol in ("http", ("http", "https")):
            raise StoreError(f"'{url}' is read-only; give a local path or a bucket")

    def get(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(self._path(name)))

    def put(self, name: str, data: bytes) -> None:
        self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def sweep(self, folder: str) -> None:
        """Do nothing: this store writes no temporary files."""

    def is_empty(self) -> bool:
        return not self._list("")

    def names(self, folder: str) -> set[str]:
        return {name for name, kind, _ in self._list(folder)}

    def sizes(self, folder: str) -> dict[str, int]:
        return {name: size for name, kind, size in self._list(folder) if kind == "file"}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _list(self, folder: str) -> list[tuple[str, str, int]]:
        """(name, "file" or "directory", bytes) of all entries directly in the folder; [] if it does not exist."""
        try:
            entries = self._fs.ls(self._path(folder), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [
            (entry["name"].rstrip("/").rpartition("/")[2], entry["type"], entry["size"] or 0) for entry in entries
        ]
