"""The process that holds one bundle, read and checked, and forks its workers. It computes nothing itself."""

import contextlib
import logging
import os
import socket
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from server.ipc import wire
from server.ipc.messages import ModelInfo, Task, WorkerReady
from server.ipc.spawn import BUNDLE_OPEN, FIRST, MESSAGE_BYTES, HostSpec
from server.workers.fork import fork_with, leave, receive_socket, wait_for_children
from server.workers.runtime import Runtime, check_difference, open_runtime, prepare_runtime
from server.workers.worker import Worker, run_worker
from student.bundle.bundle import Bundle, open_bundle
from teacher_cache.distributed.device import is_out_of_memory, pick_device
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.models.card import CARD_NAME, card_digest
from teacher_cache.models.run_folder import network_folder

GPU_BATCH = 16

log = logging.getLogger(__name__)


def run_host(control: socket.socket, order: HostSpec) -> None:
    """Open the bundle, then fork a worker for each socket that comes. What is wrong with it is said first."""
    torch.set_num_threads(1)  # the workers are the parallelism
    try:
        folder = network_folder(Path(order.folder))
        card = _digest(folder)
        bundle = open_bundle(Path(order.folder), torch.device("cpu"))
        if order.card not in ("", card):
            raise RunError(f"'{order.folder}' is another bundle than when it was opened; reload it")
        order = replace(order, card=card)
        model = prepare_runtime(order.runtime, bundle, folder)
    except LimbeckError as error:
        _say(control, str(error).encode()[:MESSAGE_BYTES])
        return
    _say(control, BUNDLE_OPEN)
    while True:
        message, channel = receive_socket(control)
        if channel is None:
            break
        if fork_with(control):
            _begin(channel, bundle, order, model, first=message == FIRST)
            leave()
        channel.close()
    control.close()
    wait_for_children()


def _say(control: socket.socket, message: bytes) -> None:
    """A peer that has gone is found out at the next receive."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(message)


def _begin(channel: socket.socket, bundle: Bundle, order: HostSpec, model: bytes, first: bool) -> None:
    """A worker's life: its first message is Begun, or what is wrong; then it works."""
    try:
        device = pick_device(order.device)
        placed = Bundle(bundle.card, bundle.student.to(device), device)
        batch = order.batch or (1 if device.type == "cpu" else GPU_BATCH)
        runtime = open_runtime(order.runtime, placed, batch, model)
        size = bundle.card.eval.size
        worker = Worker(placed, runtime, batch, order.max_pixels)
        _try(worker, runtime, order.folder, size, batch)
        difference = 0.0
        if first:  # later the folder may be another's, or gone
            difference = check_difference(order.runtime, runtime, network_folder(Path(order.folder)), batch)
    except LimbeckError as error:
        wire.send(channel, error)
        return
    except Exception as error:  # a runtime may refuse a network in its own way
        log.exception("a worker cannot begin")
        wire.send(channel, RunError(f"'{order.folder}' cannot be served by {order.runtime}: {_line(error)}"))
        return
    wire.send(channel, WorkerReady(os.getpid(), _facts(bundle, order, str(device), batch, difference)))
    run_worker(channel, worker)


def _try(worker: Worker, runtime: Runtime, folder: str, size: int, batch: int) -> None:
    """Warm up decoders and kernels. Raises RunError for a bundle that can judge no image."""
    try:
        runtime(torch.zeros(batch, size, size, 3, dtype=torch.uint8))
    except Exception as error:  # each runtime has its own
        if not is_out_of_memory(error):  # the worker makes do with fewer at once
            raise RunError(f"'{folder}' cannot judge an image of {size} px: {_line(error)}") from None
    for done in worker.run([Task(image) for image in _samples(size)]):
        if isinstance(done.value, LimbeckError):
            raise RunError(f"'{folder}' cannot be served: {done.value}")


def _digest(folder: Path) -> str:
    """Of a bundle's card; "" where `open_bundle` says what is wrong with it."""
    try:
        return card_digest((folder / CARD_NAME).read_bytes())
    except (OSError, ValueError):
        return ""


def _samples(size: int) -> list[bytes]:
    """A JPEG and a PNG of one colour."""
    files = [BytesIO(), BytesIO()]
    for kind, file in zip(("JPEG", "PNG"), files, strict=True):
        Image.new("RGB", (2 * size, 2 * size)).save(file, kind)
    return [file.getvalue() for file in files]


def _facts(bundle: Bundle, order: HostSpec, device: str, batch: int, difference: float) -> ModelInfo:
    card = bundle.card
    return ModelInfo(
        name=order.name or card.network.name,
        version=order.version or card.sha256[:8],
        network=card.network.name,
        classes=card.classes,
        heads=card.heads,
        fusion=card.fusion,
        size=card.eval.size,
        accuracy=card.accuracy,
        sha256=card.sha256,
        card=order.card,
        runtime=order.runtime,
        device=device,
        difference=difference,
        batch=batch,
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
