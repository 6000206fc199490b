"""A process that has imported torch once, and forks a model host for each bundle.

    serving process -> forkserver -> one model host per bundle -> its workers

A worker that exits is replaced by a new fork of its model host, within milliseconds and with the same weights.
Model hosts and workers exit when their socket to the serving process closes.
"""

import gc
import json
import logging
import signal
import socket
import sys

from server.ipc.spawn import HostSpec
from server.workers.fork import exit_immediately, fork, receive_socket, wait_for_children


def main(control: socket.socket) -> None:
    """Fork a model host for each HostSpec and socket that arrive, until `control` closes."""
    gc.disable()
    import server.workers.model_host

    gc.freeze()  # the collector would write to imported objects, which would copy their pages in each worker
    gc.enable()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    while True:
        message, host_control = receive_socket(control)
        if host_control is None:
            break
        if fork(close=control):
            server.workers.model_host.run_host(host_control, HostSpec(**json.loads(message)))
            exit_immediately()
        host_control.close()
    control.close()
    wait_for_children()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="limbeck: worker %(process)d: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the serving process decides when this one exits
    main(socket.socket(fileno=int(sys.argv[1])))
    exit_immediately()  # after gc.freeze(), a normal exit makes triton print a list of leaked objects
