"""The files of a tar, or of joined tars."""

import tarfile
import threading
from pathlib import Path
from typing import IO

from teacher_cache.data.tar import BLOCK, WITHOUT_FILES, StrictTar, link_target
from teacher_cache.errors import ShardError
from teacher_cache.packing.links import linked_files, log_repeated, log_shared, log_special
from teacher_cache.packing.tree_path import TreePaths, is_hidden, member_path
from teacher_cache.storage.compression import is_compressed, unpack_command
from teacher_cache.storage.file_name import escape


class TarTree:
    """The files and links of a tar. If a name occurs twice, the last one counts, as in `tar -x`."""

    def __init__(self, file: IO[bytes], source: Path) -> None:
        self._archive, self._lock = StrictTar.open(fileobj=file, mode="r:"), threading.Lock()
        with source.open("rb") as packed:
            head = packed.read(BLOCK)
        if is_compressed(head):
            self._archive.unpack = (unpack_command(head),)
        members = self._last_members(source)
        links = {
            path: link_target(path, member.linkname, member.issym())
            for path, member in members.items()
            if member.islnk() or member.issym()
        }
        files = {path: member for path, member in members.items() if member.isreg()}
        log_special(source, [path for path in members if path not in files and path not in links])
        files |= {path: files[target] for path, target in linked_files(links, files, source).items()}
        paths = TreePaths(source)
        self._members = {paths.add(path): member for path, member in files.items() if not is_hidden(path)}
        self.fingerprints = {path: [member.size, int(member.mtime)] for path, member in self._members.items()}
        if links:
            log_shared(source, ((path, member.offset) for path, member in self._members.items()))

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, count: int = 64) -> bytes:
        with self._lock:
            file = self._archive.extractfile(self._members[name])
            assert file is not None  # it is a regular file
            return file.read(count)

    def _last_members(self, source: Path) -> dict[str, tarfile.TarInfo]:
        """The last member of each path, without folders."""
        members: dict[str, tarfile.TarInfo] = {}
        repeated: list[str] = []
        for member in self._archive:
            if member.type in WITHOUT_FILES:
                continue
            path = member_path(member.name, source)
            if path in members:
                if member.islnk() and link_target(path, member.linkname, False) == path:
                    continue  # GNU tar writes this for a file that is named twice
                repeated.append(path)
            if member.type == b"M":
                raise ShardError(
                    f"'{escape(path)}' in archive '{source}' is continued from another volume; "
                    "join the volumes, or unpack them yourself"
                )
            members[path] = member
        log_repeated(source, repeated)
        return members
