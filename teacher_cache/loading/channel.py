"""The connection between a loader and one of its workers: messages, with large arrays in anonymous shared memory.

Large buffers are written to an anonymous file in memory (memfd), whose descriptor follows the message. /dev/shm is
not used, as a container limits it (64 MB in Docker). The file exists as long as a tensor uses it, so that a killed
process leaves nothing behind.
"""

import errno
import mmap
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any

import torch

MIN_SHARED_BYTES = 2**16
"""Buffers of at least this size are shared, smaller ones are copied through the connection."""
ALIGNMENT = 64
"""Bytes to which the buffers in a file are aligned, as torch's allocator does."""


@dataclass(frozen=True)
class Message:
    """A serialized object. sizes: bytes of its shared buffers. file: the descriptor of their file, or None."""

    data: bytes
    sizes: tuple[int, ...]
    file: int | None


class Channel:
    """One end of a connection. One thread may send while another receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Message) -> None:
        """Send a message and close its file. Raises OSError if the other end is closed."""
        self._connection.send(message.sizes)
        self._connection.send_bytes(message.data)
        if message.file is not None:
            with self._socket() as connected:
                socket.send_fds(connected, [b"f"], [message.file])
            os.close(message.file)

    def receive(self) -> tuple[bytes, list[memoryview]]:
        """Wait for a message. Returns its data and shared buffers, for `deserialize`.

        Raises EOFError or OSError if the other end is closed, OSError or MemoryError if files or memory ran out.
        """
        sizes: tuple[int, ...] = self._connection.recv()
        data = self._connection.recv_bytes()
        return data, self._receive_buffers(sizes) if sizes else []

    def _receive_buffers(self, sizes: Sequence[int]) -> list[memoryview]:
        with self._socket() as connected:
            received, files, _, _ = socket.recv_fds(connected, 1, 1)
        if not received:
            raise EOFError
        if not files:  # the system has dropped it
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        offsets = _offsets(sizes)
        try:
            mapping = memoryview(mmap.mmap(files[0], offsets[-1] + sizes[-1]))
        finally:
            os.close(files[0])
        return [mapping[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]

    @contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        """The connection as a socket, which does not own its descriptor."""
        connected = socket.socket(fileno=self._connection.fileno())
        try:
            yield connected
        finally:
            connected.detach()


class _TensorPickler(pickle.Pickler):
    """Pickles a tensor as a NumPy array, which gives its bytes to `buffer_callback` instead of copying them."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if type(obj) is torch.Tensor else NotImplemented


def serialize(value: object) -> Message:
    """Serialize an object. Raises OSError or MemoryError if files or memory ran out, and what pickle raises."""
    shared: list[memoryview] = []

    def is_copied(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < MIN_SHARED_BYTES or sys.platform != "linux":
            return True
        shared.append(raw)
        return False

    data = BytesIO()
    _TensorPickler(data, pickle.HIGHEST_PROTOCOL, buffer_callback=is_copied).dump(value)
    sizes = tuple(buffer.nbytes for buffer in shared)
    return Message(data.getvalue(), sizes, _write_file(shared, _offsets(sizes)) if shared else None)


def deserialize(data: bytes, buffers: list[memoryview]) -> Any:
    """The object of a message. Its tensors use the shared memory without a copy. Raises what pickle raises."""
    return pickle.loads(data, buffers=buffers)


def _offsets(sizes: Sequence[int]) -> list[int]:
    offsets, end = [], 0
    for size in sizes:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + size
    return offsets


def _write_file(buffers: Sequence[memoryview], offsets: Sequence[int]) -> int:
    file = os.memfd_create("limbeck")
    try:
        for buffer, offset in zip(buffers, offsets, strict=True):
            written = 0
            while written < buffer.nbytes:  # Linux writes at most 2 GiB at once
                written += os.pwrite(file, buffer[written:], offset + written)
    except BaseException:
        os.close(file)
        raise
    return file
