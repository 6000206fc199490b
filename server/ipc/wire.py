"""Framing of messages between the server's own processes: an 8-byte length, then a pickle.

Only for sockets between these processes: unpickling data of others would run their code.
"""

import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")


def pack(message: Any) -> tuple[bytes, bytes]:
    """The length and the body of a message, as bytes."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)), body


def send(connection: socket.socket, message: Any) -> None:
    """Send a message. A peer that has closed is noticed by the next receive."""
    try:
        connection.sendall(b"".join(pack(message)))
    except (BrokenPipeError, ConnectionResetError):
        return


def receive(connection: socket.socket) -> Any:
    """The next message; None if the peer has closed the connection."""
    length = _receive_exactly(connection, _LENGTH.size)
    if length is None:
        return None
    body = _receive_exactly(connection, *_LENGTH.unpack(length))
    return None if body is None else pickle.loads(body)


def _receive_exactly(connection: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view, received = memoryview(buffer), 0
    while received < count:
        try:
            chunk = connection.recv_into(view[received:])
        except ConnectionResetError:
            return None
        if chunk == 0:
            return None
        received += chunk
    return buffer


class Reader:
    """Reassembles messages from the chunks in which they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Any]:
        """Add a chunk and return all messages that it completes."""
        self._buffer += chunk
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(memoryview(self._buffer)[_LENGTH.size : end]))
            del self._buffer[:end]
        return messages
