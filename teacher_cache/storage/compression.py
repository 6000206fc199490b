"""Recognize compressed files and archives by their first bytes; decompress gzip, bzip2 and xz."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

CHUNK = 1 << 16


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


DECOMPRESSORS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
UNPACK_COMMANDS = {b"\x1f\x8b": "gzip -dc", b"BZh": "bzip2 -dc", b"\xfd7zXZ\0": "xz -dc"}
"""Commands that write the decompressed file to standard output."""
OTHER_FORMATS = {
    b"PK": "a zip",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"LZIP": "compressed with lzip",
    b"\x1f\x9d": "compressed with compress",
    b"version https://git-lfs": "a Git LFS pointer",
    b"<": "HTML or XML",
    b"{": "JSON",
}


ADVICE = {
    b"PK": "unpack it, and pack the images with limbeck pack",
    b"7z\xbc\xaf\x27\x1c": "unpack it, and pack the images with limbeck pack",
    b"Rar!": "unpack it, and pack the images with limbeck pack",
    b"\x28\xb5\x2f\xfd": "decompress it: zstd -d FILE",
    b"\x04\x22\x4d\x18": "decompress it: lz4 -d FILE",
    b"LZIP": "decompress it: lzip -d FILE",
    b"\x1f\x9d": "decompress it: gzip -d FILE",
    b"version https://git-lfs": "download the file itself: git lfs pull",
    b"<": "it may be the error page of a server; download it again",
    b"{": "it may be the error message of a server; download it again",
}
"""What to do with a file of another format."""


def is_compressed(head: bytes) -> bool:
    """Whether a file with these first bytes can be decompressed here."""
    return head.startswith(tuple(DECOMPRESSORS))


def format_of(head: bytes) -> str:
    """The format of a file with these first bytes, for a message: "a zip"."""
    if not head:
        return "empty"
    known = next((name for magic, name in OTHER_FORMATS.items() if head.startswith(magic)), "")
    return known or f"of an unknown format (first bytes {head[:8]!r})"


def unpack_command(head: bytes) -> str:
    """The command for a file with these first bytes that `is_compressed`, e.g. "gzip -dc"."""
    return next(command for magic, command in UNPACK_COMMANDS.items() if head.startswith(magic))


def format_advice(head: bytes) -> str:
    """What to do with a file with these first bytes; "" if its format is unknown."""
    return next((advice for magic, advice in ADVICE.items() if head.startswith(magic)), "")


def decompress(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the decompressed bytes of all streams of a gzip, bzip2 or xz file; zeros behind a stream are padding.

    Raises EOFError if the file is truncated, ValueError for damaged streams and data behind the last one.
    """
    chunk = file.read(CHUNK)
    while chunk:
        offset = file.tell() - len(chunk)
        chunk += file.read(CHUNK) if len(chunk) < CHUNK else b""  # a magic may span two chunks
        new = next((new for magic, new in DECOMPRESSORS.items() if chunk.startswith(magic)), None)
        if new is None:
            raise ValueError(f"data that is not compressed at byte {offset}, after the end of the archive")
        stream = new()
        while not stream.eof:
            if not chunk:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            try:
                yield stream.decompress(chunk)
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise ValueError(f"{error} in the compressed stream at byte {offset}") from None
            chunk = b"" if stream.eof else file.read(CHUNK)
        chunk = stream.unused_data.lstrip(b"\0")
        while not chunk and (more := file.read(CHUNK)):
            chunk = more.lstrip(b"\0")
