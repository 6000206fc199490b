"""The files of a folder, also behind links to files and folders."""

import os
import unicodedata
from collections import deque
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NoReturn

from teacher_cache.errors import ShardError, is_transient
from teacher_cache.packing.links import log_not_followed, log_shared, log_special
from teacher_cache.packing.tree_path import TreePaths, is_hidden
from teacher_cache.storage.file_name import escape


class FolderTree:
    """The regular files of a folder. Links are followed; each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = TreePaths(root)
        self.fingerprints: dict[str, list[int]] = {}
        identities: list[Hashable] = []
        device = root.stat().st_dev
        has_links = False
        for name, status, is_link in _walk(root):
            path = self._paths.add(name)
            self.fingerprints[path] = [status.st_size, status.st_mtime_ns]
            identities.append(status.st_ino if status.st_dev == device else (status.st_dev, status.st_ino))
            has_links |= is_link or status.st_nlink > 1
        if has_links:
            log_shared(root, zip(self.fingerprints, identities, strict=True))

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, count: int = 64) -> bytes:
        try:
            with (self._root / self._paths.changed.get(name, name)).open("rb") as file:
                return file.read(count)
        except OSError as error:
            _raise_unreadable(error)

    def subfolders(self, prefix: str) -> set[str]:
        """The names of all folders in a folder, also of those without files, in NFC."""
        folder = self._paths.changed.get(prefix, prefix)
        try:
            names = [entry.name for entry in _visible_entries(self._root, folder) if entry.is_dir()]
        except OSError as error:
            _raise_unreadable(error)
        return {escape(unicodedata.normalize("NFC", name)) for name in names}


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Yield name, status and whether it is a link of each file. Links to folders come last."""
    folders, folder_links = deque([""]), deque[str]()
    visited: dict[tuple[int, int], str] = {}
    circular, repeated, special = list[tuple[str, str]](), list[tuple[str, str]](), list[str]()
    try:
        while folders or folder_links:
            folder = folders.popleft() if folders else folder_links.popleft()
            status = (root / folder).stat()
            if (known := visited.setdefault((status.st_dev, status.st_ino), folder)) != folder:
                repeated.append((folder, known or "."))
                continue
            for entry in _visible_entries(root, folder):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_file():
                    yield name, entry.stat(), entry.is_symlink()
                elif not entry.is_dir():
                    entry.stat()  # raises for a broken link: an image must not be skipped silently
                    special.append(name)
                elif not entry.is_symlink():
                    folders.append(name)
                elif _contains(os.path.realpath(entry.path), os.path.realpath(root / folder)):
                    circular.append((name, os.path.realpath(entry.path)))
                else:
                    folder_links.append(name)
    except OSError as error:
        _raise_unreadable(error)
    log_not_followed(root, circular, "a folder that contains it")
    log_not_followed(root, repeated, "the same folder")
    log_special(root, special)


def _visible_entries(root: Path, folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(root / folder) as entries:
        return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)


def _contains(outer: str, inner: str) -> bool:
    return os.path.commonpath((outer, inner)) == outer


def _raise_unreadable(error: OSError) -> NoReturn:
    if is_transient(error):
        raise error
    raise ShardError(
        f"'{escape(str(error.filename))}' cannot be read ({error.strerror}); fix or remove it"
    ) from None
