"""Model workers as forks of one warm process: libraries are imported once, and each bundle is read once.

    serving process -> nursery (has imported torch) -> one holder for each bundle (has read it) -> its workers

A worker that dies is forked anew from the holder, in milliseconds, with the very weights it had. A holder or a
worker ends when its socket to the serving process closes, whatever became of that; so nothing is left behind.
"""

import gc
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

from teacher_cache.light import HUB, import_lightly, import_torch

MESSAGE_BYTES = 65_536
OPENED = b"\0"
"""What a holder says of a bundle that it could read; of another it says what is wrong."""
FIRST, NEXT = b"first", b"next"
"""What a holder is told with a worker's socket: the first worker checks the runtime, the others need not."""


@dataclass(frozen=True)
class Order:
    """Which bundle to open, and how. card: the digest of a card that it must have; "" takes any."""

    folder: str
    name: str
    version: str
    device: str
    runtime: str
    batch: int
    max_pixels: int
    card: str = ""


def main(control: socket.socket) -> None:
    """The nursery's life: each message (an order, with a socket for it) becomes a holder."""
    gc.disable()
    import_torch()
    import_lightly(HUB)
    import server.holder

    gc.freeze()  # what is imported stays, and is neither looked through nor, by that, copied for each worker
    gc.enable()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        message, channel = receive_socket(control)
        if channel is None:
            break
        if fork_with(control):
            server.holder.hold(channel, Order(**json.loads(message)))
            leave()
        channel.close()
    control.close()
    wait_for_children()


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


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="limbeck: worker %(process)d: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the serving process decides when work ends
    main(socket.socket(fileno=int(sys.argv[1])))
