"""Model workers as forks of one warm process: libraries are imported once, and each bundle is read once.

    serving process -> nursery (has imported torch) -> one holder for each bundle (has read it) -> its workers

A worker that dies is forked anew from the holder, in milliseconds, with the very weights it had. A holder or a
worker ends when its socket to the serving process closes, whatever became of that; so nothing is left behind.
"""

import gc
import json
import logging
import signal
import socket
import sys

from server.ipc.spawn import HostSpec
from server.workers.fork import fork_with, leave, receive_socket, wait_for_children


def main(control: socket.socket) -> None:
    """The nursery's life: each message (an order, with a socket for it) becomes a holder."""
    gc.disable()
    import server.workers.model_host

    gc.freeze()  # what is imported stays, and is neither looked through nor, by that, copied for each worker
    gc.enable()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        message, channel = receive_socket(control)
        if channel is None:
            break
        if fork_with(control):
            server.workers.model_host.run_host(channel, HostSpec(**json.loads(message)))
            leave()
        channel.close()
    control.close()
    wait_for_children()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="limbeck: worker %(process)d: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the serving process decides when work ends
    main(socket.socket(fileno=int(sys.argv[1])))
    leave()  # the frozen modules are never collected, and some libraries report that at a normal exit
