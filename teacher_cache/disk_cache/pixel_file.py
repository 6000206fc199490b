"""The file of a decoded shard: the pixels of all images, read through a memory map.

Layout: the header, one table entry per row, then the pixels of each row at a multiple of ALIGNMENT. The checksums
of the table and of each row's pixels are xxh3. A row of 0 x 0 pixels is not stored: it could not be decoded.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from teacher_cache.errors import ImageError

Pixels = NDArray[np.uint8]
"""(H, W, 3)"""

MAGIC = b"limbeck pixels 1"
HEADER = struct.Struct("<16s32sQQQ")
"""Magic, name of the shard, size of the file, number of rows, checksum of the table."""
ENTRY = np.dtype([("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("checksum", "<u8")])
ALIGNMENT = 64


class DamagedFileError(Exception):
    """The file is not a whole file of this shard."""


def file_bytes(sizes: Sequence[int]) -> int:
    """Bytes of the file for images of these numbers of bytes."""
    return _table_bytes(len(sizes)) + sum(map(_aligned, sizes))


def write_pixels(
    file: BinaryIO,
    name: str,
    images: Sequence[bytes],
    sizes: Sequence[int],
    decode: Callable[[bytes], Pixels],
) -> None:
    """Decode images into a new file. sizes: bytes of each image; an image that has others is not stored."""
    table, offset = np.zeros(len(images), ENTRY), _table_bytes(len(images))
    for row, (image, size) in enumerate(zip(images, sizes, strict=True)):
        try:
            pixels = decode(image)
        except ImageError:  # reported if the image is needed
            continue
        if pixels.nbytes == size:
            content = np.ascontiguousarray(pixels).data
            file.seek(offset)
            file.write(content)
            table[row] = offset, *pixels.shape[:2], xxhash.xxh3_64_intdigest(content)
            offset += _aligned(size)
    total = file_bytes(sizes)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, name.encode(), total, len(images), _checksum(table)) + table.tobytes())
    file.truncate(total)
    file.flush()


class PixelFile:
    """A memory-mapped file. While it is open, or an array of it exists, `delete_unused` does not delete it.

    name, rows: of the shard. Raises FileNotFoundError, or DamagedFileError if the file is not whole.
    """

    def __init__(self, path: Path, name: str, rows: int) -> None:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the map has a duplicate of the handle, which keeps the lock
            status = os.fstat(file.fileno())
            if status.st_nlink == 0:
                raise FileNotFoundError(path)  # evicted since it was opened
            self.inode, self.rows = status.st_ino, rows
            self._table = _read_table(file, name, rows, status.st_size).tolist()
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def image(self, row: int, verified: NDArray[np.bool_]) -> Pixels | None:
        """The (H, W, 3) pixels of a row in the map, read-only, or None if the row is not stored.

        verified: (rows,) whether the checksum has been compared; updated. Raises DamagedFileError if it differs.
        """
        offset, height, width, checksum = self._table[row]
        if not height:
            return None
        size = 3 * height * width
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, offset + size - start)  # reads from the disk meanwhile
        pixels = self._bytes[offset : offset + size]
        if not verified[row]:
            if xxhash.xxh3_64_intdigest(pixels.data) != checksum:
                raise DamagedFileError(f"the checksum of row {row} differs")
            verified[row] = True
        return pixels.reshape(height, width, 3)


def _read_table(file: BinaryIO, name: str, rows: int, size: int) -> NDArray[np.void]:
    header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise DamagedFileError("it is not a file of pixels")
    _, stored_name, stored_size, stored_rows, checksum = HEADER.unpack(header)
    if (stored_name, stored_size, stored_rows) != (name.encode(), size, rows):
        raise DamagedFileError("its name, size or number of rows differs")
    table = np.frombuffer(file.read(rows * ENTRY.itemsize), ENTRY)
    if len(table) != rows or _checksum(table) != checksum:
        raise DamagedFileError("the checksum of its table differs")
    return table


def delete_unused(path: Path) -> bool:
    """Delete a file of pixels unless a process reads or writes it. Returns whether it was deleted."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
        return True


def _table_bytes(rows: int) -> int:
    return _aligned(HEADER.size + rows * ENTRY.itemsize)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _checksum(table: NDArray[np.void]) -> int:
    return xxhash.xxh3_64_intdigest(table.tobytes())
