"""The worker process of a loader: produces items and sends each with a sequence number.

The main thread serializes each item, so that every failure becomes a message to the receiver. A second thread only
sends bytes, since a connection cannot hold all prefetched items.
"""

import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from teacher_cache.loading.failure import explain, explain_sending, worker_name
from teacher_cache.loading.messages import PREFETCH, STOP, Dataset, EndOfItems, LoadedItem, LoadFailure

POLL_SECONDS = 1.0
"""Interval at which a worker checks that its parent is running."""
EXIT_WITHOUT_RECEIVER = 1


def run_worker(dataset: Dataset[Any], number: int, workers: int, connection: Connection, parent: int) -> None:
    """Send the items of one worker, then EndOfItems or LoadFailure, and wait for STOP.

    parent: the process ID of the receiver.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the receiver too, which stops the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork inherits the receiver's handler
    torch.set_num_threads(1)
    outbox = SimpleQueue[bytes]()
    try:
        threading.Thread(target=_exit_without_parent, args=(parent,), daemon=True).start()
        threading.Thread(target=_send_all, args=(connection, outbox), daemon=True).start()
    except RuntimeError as error:  # too many threads
        connection.send_bytes(pickle.dumps(LoadFailure(explain(error, worker_name(number, workers)))))
        return
    if _produce(dataset, number, workers, connection, outbox):
        while _receive(connection) != STOP:
            pass


def _produce(
    dataset: Dataset[Any], number: int, workers: int, connection: Connection, outbox: "SimpleQueue[bytes]"
) -> bool:
    """Put all messages of the worker into its outbox. Returns False if STOP was received first."""
    name, sent, waiting = worker_name(number, workers), 0, 0
    try:
        started = time.monotonic()
        for value in dataset.items(number, workers):
            outbox.put(_serialize(LoadedItem(sent, value, time.monotonic() - started), name))
            del value  # its memory
            sent, waiting = sent + 1, waiting + 1
            while waiting == PREFETCH or connection.poll():
                if _receive(connection) == STOP:
                    return False
                waiting -= 1
            started = time.monotonic()
        outbox.put(pickle.dumps(EndOfItems(sent)))
    except BaseException as error:  # SystemExit too
        outbox.put(pickle.dumps(LoadFailure(explain(error, name))))
    return True


def _serialize(item: LoadedItem[Any], name: str) -> bytes:
    try:
        return pickle.dumps(item)
    except Exception as error:  # pickle calls methods of the item, which may raise anything
        raise explain_sending(error, item, name) from error


def _receive(connection: Connection) -> bytes:
    """The next message of the receiver. Ends this process if the receiver has exited."""
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(EXIT_WITHOUT_RECEIVER)


def _send_all(connection: Connection, outbox: "SimpleQueue[bytes]") -> None:
    """Send each message. Ends this process if that fails, so that no message is lost without notice."""
    try:
        while True:
            connection.send_bytes(outbox.get())
    finally:
        os._exit(EXIT_WITHOUT_RECEIVER)


def _exit_without_parent(parent: int) -> None:
    """End this process when its parent has ended, even if the main thread is blocked."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(EXIT_WITHOUT_RECEIVER)
