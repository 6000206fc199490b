"""Store in a local folder."""

import os
import time
from contextlib import suppress
from pathlib import Path

from teacher_cache.storage.atomic import create_exclusive, make_folder, write_atomic

ABANDONED_SECONDS = 3600
"""Age after which a temporary file is removed: its process was killed."""


class LocalStore:
    """`Store` in a local folder, which is created by the first write."""

    def __init__(self, path: Path) -> None:
        self._path, self.where = path, str(path)

    def get(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        write_atomic(self._make_parent(name), data)

    def create(self, name: str, data: bytes) -> bool:
        return create_exclusive(self._make_parent(name), data)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        for leftover in (self._path / folder).glob(".*.tmp"):
            with suppress(FileNotFoundError):  # removed by another job
                if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                    leftover.unlink()

    def is_empty(self) -> bool:
        try:
            return all(path.name.startswith(".") for path in self._path.iterdir())  # hidden: temporary
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

    def _make_parent(self, name: str) -> Path:
        path = self._path / name
        make_folder(path.parent)
        return path
