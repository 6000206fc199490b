"""Read files by relative path from a folder, a zip or a tar archive."""

import gzip
import os
import posixpath
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import IO, NoReturn, Protocol

from teacher_cache.data.index import IMAGE_SUFFIXES
from teacher_cache.data.tar import StrictHeader
from teacher_cache.errors import ImageError, ShardError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


class FileTree(Protocol):
    """Regular files by relative path, without hidden ones. A path's fingerprint changes if its content changes."""

    fingerprints: dict[str, list[int]]

    def read(self, name: str) -> bytes: ...

    def head(self, name: str, count: int = 64) -> bytes:
        """The first `count` bytes of a file, or all if it is shorter."""
        ...


@contextmanager
def open_tree(source: Path, scratch: Path) -> Iterator[FileTree]:
    """Open a folder or an archive. scratch: a folder with enough space for an unpacked .tar.gz.

    Raises ShardError if the source is not a folder or archive, or cannot be read.
    """
    if source.is_dir():
        yield _Folder(source)
        return
    name = source.name.lower()
    if not name.endswith(ARCHIVE_SUFFIXES):
        raise ShardError(
            f"source '{source}' is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}); "
            "give one of these"
        )
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(source.open("rb"))
            if name.endswith((".tar.gz", ".tgz")):  # gzip has no random access
                unpacked = stack.enter_context(
                    tempfile.TemporaryFile(dir=scratch)
                )  # unnamed: a kill leaves no file
                with gzip.open(file) as compressed:
                    shutil.copyfileobj(compressed, unpacked, 1 << 20)
                unpacked.seek(0)
                file = unpacked
            if name.endswith(".zip"):
                tree: FileTree = _Zip(stack.enter_context(zipfile.ZipFile(file)))
            else:
                tree = _Tar(stack.enter_context(tarfile.open(fileobj=file, mode="r:", tarinfo=StrictHeader)))
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ShardError(f"archive '{source}' cannot be read ({error}); download it again") from None
        yield tree


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.fingerprints = {}
        for folder, _, names in os.walk(root, followlinks=True, onerror=_raise_unreadable):
            relative = Path(folder).relative_to(root)
            for name in names:
                path = (relative / name).as_posix()
                if not is_hidden(path):
                    try:
                        status = Path(folder, name).stat()
                    except OSError as error:  # e.g. a broken link: an image must not be skipped silently
                        _raise_unreadable(error)
                    if S_ISREG(status.st_mode):
                        self.fingerprints[path] = [status.st_size, status.st_mtime_ns]

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, count: int = 64) -> bytes:
        try:
            with (self._root / name).open("rb") as file:
                return file.read(count)
        except OSError as error:
            _raise_unreadable(error)


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members = {_normalize_path(info.filename): info for info in archive.infolist() if not info.is_dir()}
        self.fingerprints = {
            path: [info.file_size, info.CRC] for path, info in self._members.items() if not is_hidden(path)
        }

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, count: int = 64) -> bytes:
        try:
            with self._archive.open(self._members[name]) as file:
                return file.read(count)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ImageError(f"damaged in the archive: {error}") from None
        except RuntimeError as error:  # encrypted, or an unsupported compression
            raise ShardError(f"'{name}' cannot be unpacked: {error}; unpack the archive yourself") from None


class _Tar:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive, self._lock = archive, threading.Lock()
        self._members = {_normalize_path(member.name): member for member in archive if not member.isdir()}
        self.fingerprints = {
            path: [member.size, int(member.mtime)] for path, member in self._members.items() if not is_hidden(path)
        }

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, count: int = 64) -> bytes:
        with self._lock:
            try:
                file = self._archive.extractfile(self._members[name])
            except KeyError:
                file = None
            if file is None:
                raise ShardError(f"'{name}' in the archive is a broken link; unpack the archive yourself")
            return file.read(count)


def _normalize_path(name: str) -> str:
    """A member's path without "./" and doubled slashes."""
    return posixpath.normpath(name).lstrip("/")


def is_image(name: str) -> bool:
    """Whether a path has an image suffix and is not hidden (.DS_Store, ._photo.jpg, __MACOSX)."""
    return not is_hidden(name) and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a part of a path begins with a dot, or is __MACOSX (in zips made by macOS)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ShardError(f"'{error.filename}' cannot be read ({error.strerror}); fix or remove it")
