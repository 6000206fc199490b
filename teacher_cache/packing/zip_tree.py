"""The files of a zip."""

import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from shlex import quote
from typing import IO

from teacher_cache.console import count_of, log_line
from teacher_cache.data.tar import link_target
from teacher_cache.errors import ImageError, ShardError, is_transient
from teacher_cache.packing.links import linked_files, log_repeated, log_shared
from teacher_cache.packing.tree_path import TreePaths, is_hidden, member_path
from teacher_cache.storage.compression import is_compressed, unpack_command
from teacher_cache.storage.file_name import escape

IS_ENCRYPTED, IS_UTF8 = 0x1, 0x800
"""Bits of a member's flags."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
METHOD_NAMES = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 99: "AES"}
UNIX, MACOS = 3, 19
"""Systems that a zip may come from. Their file names are UTF-8, or in an unknown encoding."""
UNICODE_PATH = 0x7075
"""Extra field of Info-ZIP: version 1, CRC-32 of the name it replaces, the name in UTF-8."""
END_SIGNATURE, END_BYTES, LONGEST_COMMENT = b"PK\5\6", 22, 65_535
"""The end record of a zip, its size without the comment, and the largest comment."""


class ZipTree:
    """The files and links of a zip. If a name occurs twice, the last one counts."""

    def __init__(self, file: IO[bytes], source: Path) -> None:
        self._archive = zipfile.ZipFile(file)
        _check_ends(file, self._archive, source)
        members = _last_members(self._archive, source)
        unreadable = [path for path, member in members.items() if not is_hidden(path) and _obstacle(member)]
        if unreadable:
            raise ShardError(
                f"'{escape(unreadable[0])}' in archive '{source}' is {_obstacle(members[unreadable[0]])}: "
                f"{count_of(len(unreadable), 'file')} cannot be read; unpack the archive yourself"
            )
        links = {
            path: link_target(path, self._archive.read(member).decode(errors="surrogateescape"), True)
            for path, member in members.items()
            if _is_link(member)
        }
        files = {path: member for path, member in members.items() if path not in links}
        files |= {path: files[target] for path, target in linked_files(links, files, source).items()}
        paths = TreePaths(source)
        self._members = {paths.add(path): member for path, member in files.items() if not is_hidden(path)}
        self.fingerprints = {path: [member.file_size, member.CRC] for path, member in self._members.items()}
        if links:
            log_shared(source, ((path, member.header_offset) for path, member in self._members.items()))

    def read(self, name: str) -> bytes:
        return self.head(name, -1)

    def head(self, name: str, count: int = 64) -> bytes:
        try:
            with self._archive.open(self._members[name]) as file:
                return file.read(count)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if is_transient(error):
                raise
            raise ImageError(f"damaged in the archive: {error}") from None
        except RuntimeError as error:  # strong encryption, or patched data
            raise ShardError(
                f"'{escape(name)}' cannot be unpacked: {error}; unpack the archive yourself"
            ) from None


def _last_members(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """The last member of each path, without folders."""
    members: dict[str, zipfile.ZipInfo] = {}
    repeated: list[str] = []
    guessed: list[str] = []
    for member in archive.infolist():
        name, is_guess = _decode_name(member)
        if name.endswith("/"):
            continue
        path = member_path(name, source)
        if path in members:
            repeated.append(path)
        if is_guess and not is_hidden(path):
            guessed.append(path)
        members[path] = member
    log_repeated(source, repeated)
    if guessed:
        log_line(
            f"{count_of(len(guessed), 'name')} in archive '{source}' are not UTF-8 and were read as cp437, as the "
            f"zip standard says, e.g. '{escape(guessed[0])}'; if this is wrong, unpack the archive with the "
            "encoding of its maker, such as cp932: python -m zipfile --metadata-encoding cp932 -e "
            f"{quote(str(source))} FOLDER"
        )
    return members


def _decode_name(member: zipfile.ZipInfo) -> tuple[str, bool]:
    """The name of a member, and whether its encoding is a guess. Folders end in "/".

    In order: the UTF-8 flag, Info-ZIP's Unicode path, valid UTF-8 (tools on Unix do not set the flag), cp437 as
    in the standard (tools on Windows use the code page of their country).
    """
    name, is_guess = member.orig_filename, False
    if not member.flag_bits & IS_UTF8 and not name.isascii():
        data = name.encode("cp437")  # zipfile has decoded it as cp437
        unicode_path = _unicode_path(member.extra, data)
        try:
            name = unicode_path or data.decode()
        except UnicodeDecodeError:
            if member.create_system in (UNIX, MACOS):
                name = data.decode(errors="surrogateescape")
            else:
                is_guess = True
    is_windows = member.create_system not in (UNIX, MACOS)
    if "/" not in name or (is_windows and not is_guess):  # in a guess, it may be half a letter
        name = name.replace("\\", "/")
    return name, is_guess


def _unicode_path(extra: bytes, name: bytes) -> str:
    """The name in the extra field UNICODE_PATH; "" if it is missing or belongs to another name."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and field[:5] == struct.pack("<BL", 1, zlib.crc32(name)):
            return field[5:].decode(errors="surrogateescape")
    return ""


def _is_link(member: zipfile.ZipInfo) -> bool:
    return member.create_system in (UNIX, MACOS) and stat.S_ISLNK(member.external_attr >> 16)


def _obstacle(member: zipfile.ZipInfo) -> str:
    """Why zipfile cannot read a member; "" if it can."""
    if member.flag_bits & IS_ENCRYPTED:
        return "encrypted"
    if member.compress_type not in METHODS:
        name = METHOD_NAMES.get(member.compress_type, "unknown")
        return f"compressed with method {member.compress_type} ({name})"
    return ""


def _check_ends(file: IO[bytes], archive: zipfile.ZipFile, source: Path) -> None:
    """Raise ShardError if another zip precedes the zip, or data follows it. zipfile ignores both."""
    size = file.seek(0, 2)
    file.seek(max(size - LONGEST_COMMENT - END_BYTES, 0))
    tail = file.read()
    start = tail.rfind(END_SIGNATURE)
    end = start + END_BYTES + int.from_bytes(tail[start + 20 : start + 22], "little")
    if tail[end:].strip(b"\0"):
        end += size - len(tail)
        with source.open("rb") as archived:
            head, path = archived.read(16), quote(str(source))
        cut = f"{unpack_command(head)} {path} | head -c {end}" if is_compressed(head) else f"head -c {end} {path}"
        raise ShardError(
            f"data follows the end of archive '{source}' at byte {end}; to remove it: {cut} > FIXED.zip"
        )
    first = min((member.header_offset for member in archive.infolist()), default=archive.start_dir)
    file.seek(0)
    if first > 0 and file.read(4) == b"PK\3\4":
        raise ShardError(
            f"archive '{source}' contains members before byte {first} that its directory does not list (joined "
            "zips, or more than 4 GiB without Zip64); unpack it yourself"
        )
