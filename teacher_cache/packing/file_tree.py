"""Read files by relative path from a folder, a zip or a tar archive."""

import lzma
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from teacher_cache.console import count_of, join_first, log_line
from teacher_cache.data.tar import BLOCK, UnusableTar, is_tar
from teacher_cache.errors import ShardError, is_transient
from teacher_cache.packing.folder_tree import FolderTree
from teacher_cache.packing.tar_tree import TarTree
from teacher_cache.packing.zip_tree import ZipTree
from teacher_cache.storage.compression import decompress, format_of, is_compressed

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OTHER_ARCHIVE_SUFFIXES = (".7z", ".rar", ".tar.zst", ".tbz2", ".txz")
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, NotImplementedError),
)


class FileTree(Protocol):
    """Regular files by relative path, without hidden ones. A path's fingerprint changes if its content changes.

    Paths are in Unicode normal form NFC, and contain only what a line of UTF-8 can contain.
    """

    fingerprints: dict[str, list[int]]

    def read(self, name: str) -> bytes: ...

    def head(self, name: str, count: int = 64) -> bytes:
        """The first `count` bytes of a file, or all if it is shorter."""
        ...


@contextmanager
def open_tree(source: Path, scratch: Path) -> Iterator[FileTree]:
    """Open a folder or an archive, which is recognized by its content.

    scratch: a folder with enough space for an unpacked .tar.gz.
    Raises ShardError if the source is not a folder or archive, cannot be read in full, or has unusable names.
    """
    if source.is_dir():
        tree: FileTree = FolderTree(source)
        _log_archives(tree, source)
        yield tree
        return
    if not source.is_file():
        raise ShardError(f"source '{source}' is neither a folder nor a file; give one of these")
    with _decompressed(source, scratch) as file:
        tree = _read_archive(file, source)
        _log_archives(tree, source)
        yield tree


@contextmanager
def _decompressed(source: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """Open a file; decompress it to an unnamed file in `scratch`, which a kill removes, if it is compressed."""
    with ExitStack() as stack:
        with _damage_reported(source):
            file: IO[bytes] = stack.enter_context(source.open("rb"))
            while is_compressed(_head(file)):
                unpacked = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
                unpacked.writelines(decompress(file))
                file = unpacked
        yield file


def _read_archive(file: IO[bytes], source: Path) -> FileTree:
    with _damage_reported(source):
        head = _head(file)
        if is_tar(head):
            return TarTree(file, source)
        if head.startswith(b"PK") or zipfile.is_zipfile(file):
            return ZipTree(file, source)
    raise ShardError(
        f"source '{source}' is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}), "
        f"but {format_of(head)}; give one of these"
    )


@contextmanager
def _damage_reported(source: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        if is_transient(error):  # not damage, but e.g. a full disk below the unpacked archive
            raise
        other = "download it again, or unpack it yourself"
        advice = error.advice_for(str(source)) if isinstance(error, UnusableTar) else other
        raise ShardError(f"archive '{source}' cannot be read ({error}); {advice}") from None


def _log_archives(tree: FileTree, source: Path) -> None:
    """Log in one line that archives in a source are left out."""
    suffixes = (*ARCHIVE_SUFFIXES, *OTHER_ARCHIVE_SUFFIXES)
    if archives := sorted(name for name in tree.fingerprints if name.lower().endswith(suffixes)):
        log_line(
            f"{count_of(len(archives), 'archive')} in '{source}' left out ({join_first(archives)}); "
            "to pack their images, unpack them first"
        )


def _head(file: IO[bytes]) -> bytes:
    """The first bytes of a file, whose position is 0 again afterwards."""
    file.seek(0)
    head = file.read(BLOCK)
    file.seek(0)
    return head
