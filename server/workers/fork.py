"""Fork a child process that owns one end of a socket, and wait for children."""

import os
import socket
import sys
from typing import NoReturn

from server.ipc.spawn import MESSAGE_BYTES


def fork_with(*inherited: socket.socket) -> bool:
    """Fork; True in the child, which does not keep the sockets named."""
    if os.fork():
        return False
    for one in inherited:
        one.close()
    return True


def receive_socket(control: socket.socket) -> tuple[bytes, socket.socket | None]:
    """The next message and the socket that comes with it; no socket once the peer has hung up."""
    try:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
    except ConnectionResetError:
        return b"", None
    return message, socket.socket(fileno=descriptors[0]) if descriptors else None


def wait_for_children() -> None:
    """Until none is left."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def leave() -> NoReturn:
    """End a forked process without what belongs to its parent: no exit handlers, no buffers twice."""
    sys.stderr.flush()
    os._exit(0)
