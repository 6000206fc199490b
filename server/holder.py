"""The process that holds one bundle, read and checked, and forks its workers. It computes nothing itself."""

import contextlib
import logging
import os
import socket
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from server import wire
from server.judged import Begun, Facts, Task
from server.nursery import FIRST, MESSAGE_BYTES, OPENED, Order, fork_with, leave, receive_socket, wait_for_children
from server.runtime import check_difference, open_runtime, prepare
from server.worker import Worker, work
from student.bundle import Bundle, finished, open_bundle
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.world import pick_device

GPU_BATCH = 16

log = logging.getLogger(__name__)


def hold(control: socket.socket, order: Order) -> None:
    """Open the bundle, then fork a worker for each socket that comes. What is wrong with it is said first."""
    torch.set_num_threads(1)  # the workers are the parallelism
    try:
        prepare(order.runtime)
        bundle = open_bundle(Path(order.folder), torch.device("cpu"))
        if order.sha256 not in ("", bundle.card.sha256):
            raise RunError(f"'{order.folder}' has other weights than when it was opened; reload it")
    except LimbeckError as error:
        _say(control, str(error).encode()[:MESSAGE_BYTES])
        return
    _say(control, OPENED)
    while True:
        message, channel = receive_socket(control)
        if channel is None:
            break
        if fork_with(control):
            _begin(channel, bundle, order, first=message == FIRST)
            leave()
        channel.close()
    control.close()
    wait_for_children()


def _say(control: socket.socket, message: bytes) -> None:
    """A peer that has gone is found out at the next receive."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(message)


def _begin(channel: socket.socket, bundle: Bundle, order: Order, first: bool) -> None:
    """A worker's life: its first message is Begun, or what is wrong; then it works."""
    try:
        device = pick_device(order.device)
        placed = Bundle(bundle.card, bundle.student.to(device), device)
        batch = order.batch or (1 if device.type == "cpu" else GPU_BATCH)
        runtime = open_runtime(order.runtime, placed, batch)
        size = bundle.card.eval.size
        worker = Worker(placed, runtime, batch, order.max_pixels)
        worker.answer([Task(image) for image in _samples(size)])  # warms up decoders and kernels
        difference = 0.0
        if first:  # later the folder may be another's, or gone
            difference = check_difference(order.runtime, runtime, finished(Path(order.folder)), batch)
    except LimbeckError as error:
        wire.send(channel, error)
        return
    except Exception as error:  # a runtime may refuse a network in its own way
        log.exception("a worker cannot begin")
        wire.send(channel, RunError(f"'{order.folder}' cannot be served by {order.runtime}: {_line(error)}"))
        return
    wire.send(channel, Begun(os.getpid(), _facts(bundle, order, str(device), batch, difference)))
    work(channel, worker)


def _samples(size: int) -> list[bytes]:
    """A JPEG and a PNG of one colour."""
    files = [BytesIO(), BytesIO()]
    for kind, file in zip(("JPEG", "PNG"), files, strict=True):
        Image.new("RGB", (2 * size, 2 * size)).save(file, kind)
    return [file.getvalue() for file in files]


def _facts(bundle: Bundle, order: Order, device: str, batch: int, difference: float) -> Facts:
    card = bundle.card
    return Facts(
        name=order.name or card.network.name,
        version=order.version or card.sha256[:8],
        network=card.network.name,
        classes=card.classes,
        heads=card.heads,
        fusion=card.fusion,
        size=card.eval.size,
        accuracy=card.accuracy,
        sha256=card.sha256,
        runtime=order.runtime,
        device=device,
        difference=difference,
        batch=batch,
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
