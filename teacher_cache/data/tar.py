"""Read the files of a tar in memory. Plain headers are parsed here, faster than by tarfile; it parses the rest."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Literal

BLOCK = 512
END = bytes(BLOCK)
PLAIN_FILE = (b"0", b"\0")
FOLDER = b"5"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every regular file, in order.

    Raises tarfile.TarError for a damaged header, a truncated tar, and data after the end of the tar. tarfile
    itself treats all three as the end of the tar.
    """
    if data.startswith(COMPRESSED):
        yield from _members_by_tarfile(data, "r:*")
        return
    offset = 0
    while (header := data[offset : offset + BLOCK]) != END:
        if len(header) < BLOCK:
            raise tarfile.ReadError("the closing blocks are missing")
        kind, size = header[156:157], header[124:136]
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise tarfile.ReadError(f"bad checksum at byte {offset}")
        if kind not in (*PLAIN_FILE, FOLDER) or size[0] & 0x80:
            yield from _members_by_tarfile(data[offset:], "r:")  # long names, PAX and GNU extensions
            return
        start, length = offset + BLOCK, _number(size)
        offset = start + -(-length // BLOCK) * BLOCK
        if offset > len(data):
            raise tarfile.ReadError("it ends in the middle of a file")
        if kind in PLAIN_FILE:
            yield _name(header), data[start : start + length]
    if data[offset:].strip(b"\0"):
        raise tarfile.ReadError("data after the end of the tar")


def _number(field: bytes) -> int:
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise tarfile.ReadError(f"{field!r} in a header is not an octal number") from None


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")


class StrictHeader(tarfile.TarInfo):
    """A header that raises ReadError if it is damaged; tarfile would treat it as the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "StrictHeader":
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # a block of zeros: the end of the tar
                raise
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None


def _members_by_tarfile(data: bytes, mode: Literal["r:", "r:*"]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=BytesIO(data), mode=mode, tarinfo=StrictHeader) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield member.name, file.read()
    except (zlib.error, lzma.LZMAError) as error:
        raise tarfile.ReadError(str(error)) from None
