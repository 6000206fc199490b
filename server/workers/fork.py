"""Fork a child process that owns one end of a socket, and wait for children."""

import os
import socket
import sys
from typing import NoReturn

from server.ipc.spawn import MESSAGE_BYTES


def fork(close: socket.socket) -> bool:
    """Fork this process. Returns True in the child, after closing the parent's socket `close` there."""
    if os.fork():
        return False
    close.close()
    return True


def receive_socket(control: socket.socket) -> tuple[bytes, socket.socket | None]:
    """The next message and the socket sent with it; None instead of a socket if the peer has closed."""
    try:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
    except ConnectionResetError:
        return b"", None
    return message, socket.socket(fileno=descriptors[0]) if descriptors else None


def wait_for_children() -> None:
    """Block until all child processes have exited."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def exit_immediately() -> NoReturn:
    """Exit without exit handlers and without writing buffers, which a forked process shares with its parent."""
    sys.stderr.flush()
    os._exit(0)
