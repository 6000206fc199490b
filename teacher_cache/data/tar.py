"""Read the files of a tar in memory. Plain headers are parsed here, faster than by tarfile; it parses the rest."""

import posixpath
import shlex
import tarfile
from collections.abc import Iterator
from io import BytesIO

from teacher_cache.storage.compression import decompress, format_advice, format_of, is_compressed, unpack_command
from teacher_cache.storage.file_name import escape, normalize_path

BLOCK = 512
END = bytes(BLOCK)
FOLDER = b"5"
PLAIN = (b"0", b"\0", FOLDER)
WITHOUT_FILES = (tarfile.DIRTYPE, b"D", b"V")
"""Types of members that contain no file: folder, GNU's folder listing, volume label."""
TYPE_NAMES = {
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    b"M": "continued from another volume",
}

FILES_ADVICE = "write the tar again with tar --dereference --hard-dereference, which stores files instead of links"


class UnusableTar(tarfile.ReadError):
    """Tar, or other file, that may be intact but cannot be used."""

    def __init__(self, reason: str, advice: str) -> None:
        """advice: what to do; FILE stands for the path."""
        super().__init__(reason)
        self._advice = advice

    def advice_for(self, path: str) -> str:
        """What to do, with the path in its commands."""
        return self._advice.replace("FILE", shlex.quote(path))


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every file, in order, also of joined tars. A link has the bytes of its file.

    In names, bytes that are not UTF-8 and control characters are escaped.
    Raises tarfile.TarError for a damaged header or a truncated tar; UnusableTar for another format, data after the
    end of the tar, a device, and a link to anything but an earlier file; EOFError or ValueError for damaged
    compression.
    """
    unpack: tuple[str, ...] = ()
    while is_compressed(data):
        unpack = (*unpack, unpack_command(data))
        data = b"".join(decompress(BytesIO(data)))
    if not is_tar(head := data[:BLOCK]):
        reason, advice = f"it is not a tar, but {format_of(head)}", format_advice(head)
        raise UnusableTar(reason, advice) if advice else tarfile.ReadError(reason)
    tar: StrictTar | None = None
    places: dict[str, int] = {}
    offset, has_ended = 0, False
    while len(header := data[offset : offset + BLOCK]) == BLOCK:
        if header == END:
            offset, has_ended = offset + BLOCK, True
            continue
        place, kind, length = offset, header[156:157], _number(header[124:136])
        content: bytes | None = None
        checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if kind in PLAIN and length >= 0 and _number(header[148:156]) == checksum:
            name = _name(header)
            if kind != FOLDER and not name.endswith("/"):  # in the oldest tars, a slash makes a folder
                content = data[offset + BLOCK : offset + BLOCK + length]
            offset += BLOCK + -(-length // BLOCK) * BLOCK
        else:  # a link, a long name, PAX and GNU extensions, damage
            if tar is None:
                tar = StrictTar(fileobj=BytesIO(data))
                tar.unpack = unpack
            member = tar.member_at(offset, has_ended)
            name, offset = member.name, tar.offset
            if member.islnk() or member.issym():
                place = _linked_place(member, places)
                member = tar.member_at(place)
            content = _content(data, tar, member)
        if offset > len(data):
            raise tarfile.ReadError(f"it ends in the middle of the file at byte {place}")
        has_ended = False
        if content is not None:
            name = name if name.isprintable() else escape(name)
            places[name] = place
            yield name, content
    if not has_ended:
        raise tarfile.ReadError(f"the closing blocks are missing at byte {offset}")
    if not _is_zero(header):
        raise _data_after_end(offset, unpack)


def is_tar(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is a tar, perhaps an empty or damaged one."""
    if head == END or head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def link_target(name: str, link: str, is_symbolic: bool) -> str:
    """The path that a link leads to; it begins with "/" or "../" if it is outside of the archive."""
    if not is_symbolic:
        return normalize_path(link)
    return posixpath.normpath(posixpath.join(posixpath.dirname(normalize_path(name)), link))


def type_name(member: tarfile.TarInfo) -> str:
    """The type of a member that is neither a file nor a link, for a message: "a FIFO"."""
    return TYPE_NAMES.get(member.type, f"of unknown type {member.type!r}")


class StrictHeader(tarfile.TarInfo):
    """A header that raises ReadError if it is damaged; tarfile would treat it as the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "StrictHeader":
        assert isinstance(tar, StrictTar) and tar.fileobj is not None
        place = tar.fileobj.tell()
        has_ended = place == tar.end
        try:
            member = super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":  # a block of zeros: tarfile continues behind it
                tar.end = place + BLOCK
                raise
            tar.fileobj.seek(place)
            is_last = kind in ("EmptyHeaderError", "TruncatedHeaderError")
            if has_ended and is_last and _is_zero(tar.fileobj.read(BLOCK)):
                raise
            reason = "the closing blocks are missing" if kind == "EmptyHeaderError" else str(error)
            if has_ended:
                raise _data_after_end(place, tar.unpack) from None
            raise tarfile.ReadError(f"{reason} at byte {place}") from None
        if member.size < 0:  # tarfile would go back, and read forever
            raise tarfile.ReadError(f"invalid size at byte {place}")
        return member


class StrictTar(tarfile.TarFile):
    """Every member of a tar, or of tars that are joined. Raises ReadError for data that is not a tar."""

    ignore_zeros = True
    tarinfo = StrictHeader
    encoding = "utf-8"
    end = -1
    """Offset behind the last block of zeros."""
    unpack: tuple[str, ...] = ()
    """Commands that decompress the file of this tar, e.g. ("gzip -dc",)."""

    def member_at(self, offset: int, has_ended: bool = False) -> tarfile.TarInfo:
        """Read the member whose header is at an offset. has_ended: zeros precede it."""
        assert self.fileobj is not None
        self.end = offset if has_ended else -1
        self.fileobj.seek(offset)
        return StrictHeader.fromtarfile(self)


def _linked_place(link: tarfile.TarInfo, places: dict[str, int]) -> int:
    """The offset of the header of the file that a link leads to. places: those of the earlier files."""
    target = escape(link_target(link.name, link.linkname, link.issym()))
    place = next((places[prefix + target] for prefix in ("", "./", "/") if prefix + target in places), None)
    if place is None:
        raise UnusableTar(
            f"link '{escape(link.name)}' at byte {link.offset} leads to '{escape(link.linkname)}', "
            "which is not an earlier file of the tar",
            FILES_ADVICE,
        )
    return place


def _content(data: bytes, tar: StrictTar, member: tarfile.TarInfo) -> bytes | None:
    """The bytes of a file; None for a folder."""
    if member.type in WITHOUT_FILES:
        return None
    if not member.isreg():
        reason = f"'{escape(member.name)}' at byte {member.offset} is {type_name(member)}"
        raise UnusableTar(reason, "write the tar again with files only")
    if member.issparse():
        file = tar.extractfile(member)
        return file.read() if file else None
    return data[member.offset_data : member.offset_data + member.size]


def _is_zero(data: bytes) -> bool:
    return not data.strip(b"\0")


def _data_after_end(offset: int, unpack: tuple[str, ...]) -> UnusableTar:
    """The error for data after the end of a tar. unpack: commands that decompress its file; () if it is plain."""
    reason = f"data after the end of the tar, at byte {offset}, is not a tar"
    command = f"head -c {offset} FILE > FIXED.tar"
    if unpack:
        reason = f"data after the end of the tar, at byte {offset} of the decompressed data, is not a tar"
        command = " | ".join([f"{unpack[0]} FILE", *unpack[1:], f"head -c {offset} > FIXED.tar"])
    return UnusableTar(reason, f"to remove the data: {command}")


def _number(field: bytes) -> int:
    """The value of an octal field; -1 if it is not octal."""
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")
