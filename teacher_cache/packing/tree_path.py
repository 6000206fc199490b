"""Paths of the files of a source: in one Unicode normal form, safe to write, and unique."""

import unicodedata
from pathlib import Path

from teacher_cache.errors import ShardError
from teacher_cache.storage.file_name import UNWRITABLE, escape, normalize_path


class TreePaths:
    """Converts the names in a source to paths in NFC. macOS stores names in NFD, so that equal names differ.

    In file names, bytes that are not UTF-8 and control characters are escaped. Folder names may become class
    names, so such folders are refused.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folders = {"": ""}  # by name in the source, with "/" at the end
        self._unchanged: set[str] = set()
        self.changed: dict[str, str] = {}
        """The name in the source of each path that differs from it."""

    def add(self, name: str) -> str:
        """The path of a file. Raises ShardError for an unusable folder name, and if two names have one path."""
        folder, _, file = name.rpartition("/")
        prefix = self._folders.get(folder)
        if prefix is None:
            prefix = self._folders[folder] = self._add_folder(folder)
        if not (file.isascii() and file.isprintable()):
            file = escape(unicodedata.normalize("NFC", file))
        return self._keep_unique(prefix + file, name)

    def _add_folder(self, name: str) -> str:
        above, _, last = name.rpartition("/")
        if above not in self._folders:
            self._folders[above] = self._add_folder(above)
        if UNWRITABLE.search(last) or last != last.strip():
            raise ShardError(
                f"folder name {last!a} in '{escape(str(self._source))}' contains a control character, a "
                "space at an end, or bytes that are not UTF-8; rename this folder"
            )
        return self._keep_unique(f"{self._folders[above]}{unicodedata.normalize('NFC', last)}/", f"{name}/")

    def _keep_unique(self, path: str, name: str) -> str:
        if path == name:
            other = self.changed.get(path, name)
            self._unchanged.add(path)
        else:
            other = path if path in self._unchanged else self.changed.setdefault(path, name)
        if other != name:
            raise ShardError(
                f"{other!a} and {name!a} in '{escape(str(self._source))}' are the same name in Unicode normal "
                "form NFC; rename one of them"
            )
        return path


def member_path(name: str, source: Path) -> str:
    """A member's name as a relative path, as tar extracts it. Raises ShardError if it contains ".."."""
    if ".." in name and ".." in name.split("/"):
        raise ShardError(f"member '{escape(name)}' of archive '{source}' leads out of it; remove it")
    return normalize_path(name)


def is_hidden(path: str) -> bool:
    """Whether a part of a path begins with a dot, or is __MACOSX (in zips made by macOS)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
