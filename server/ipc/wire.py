"""Messages between the server's own processes: a length, then a pickle. Never spoken with anyone else."""

import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")


def pack(message: Any) -> tuple[bytes, bytes]:
    """A message's length and the message, as bytes."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)), body


def send(channel: socket.socket, message: Any) -> None:
    """Send a whole message; a peer that has gone is found out at the next receive."""
    try:
        channel.sendall(b"".join(pack(message)))
    except (BrokenPipeError, ConnectionResetError):
        return


def receive(channel: socket.socket) -> Any:
    """The next message; None once the peer has hung up."""
    head = _exactly(channel, _LENGTH.size)
    if head is None:
        return None
    body = _exactly(channel, *_LENGTH.unpack(head))
    return None if body is None else pickle.loads(body)


def _exactly(channel: socket.socket, count: int) -> bytearray | None:
    whole = bytearray(count)
    view, have = memoryview(whole), 0
    while have < count:
        try:
            got = channel.recv_into(view[have:])
        except ConnectionResetError:
            return None
        if got == 0:
            return None
        have += got
    return whole


class Reader:
    """Puts messages together from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._have = bytearray()

    def feed(self, piece: bytes) -> list[Any]:
        """The messages that are whole with this piece."""
        self._have += piece
        messages = []
        while len(self._have) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._have)[0]
            if len(self._have) < end:
                break
            messages.append(pickle.loads(memoryview(self._have)[_LENGTH.size : end]))
            del self._have[:end]
        return messages
