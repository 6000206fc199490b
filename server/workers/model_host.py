"""The process that reads one bundle and forks its workers. It runs no images itself."""

import contextlib
import json
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
from server.ipc.spawn import BUNDLE_OPEN, MESSAGE_BYTES, HostSpec, WorkerSpec
from server.workers.fork import exit_immediately, fork, receive_socket, wait_for_children
from server.workers.runtime import Runtime, check_difference, open_runtime, prepare_runtime
from server.workers.worker import Worker, run_worker
from student.bundle.bundle import Bundle, open_bundle
from teacher_cache.distributed.device import is_out_of_memory, pick_device
from teacher_cache.errors import LimbeckError, RunError
from teacher_cache.models.card import CARD_NAME, card_digest
from teacher_cache.models.run_folder import network_folder

GPU_BATCH = 16
"""Default of the maximum images per forward pass on a GPU; 1 on a CPU."""

log = logging.getLogger(__name__)


def run_host(control: socket.socket, spec: HostSpec) -> None:
    """Open the bundle and send BUNDLE_OPEN with its device, or the error.

    Then fork a worker for each socket that arrives.
    """
    torch.set_num_threads(1)  # each worker uses one core
    try:
        folder = network_folder(Path(spec.folder))
        card = _card_digest(folder)
        bundle = open_bundle(Path(spec.folder), torch.device("cpu"))
        if spec.card not in ("", card):
            raise RunError(f"'{spec.folder}': the bundle has changed since it was loaded; reload the model")
        spec = replace(spec, card=card)
        model = prepare_runtime(spec.runtime, bundle, folder)
    except LimbeckError as error:
        _send(control, str(error).encode()[:MESSAGE_BYTES])
        return
    _send(control, BUNDLE_OPEN + device_type(spec).encode())
    while True:
        message, connection = receive_socket(control)
        if connection is None:
            break
        if fork(close=control):
            _start_worker(connection, bundle, spec, model, WorkerSpec(**json.loads(message)))
            exit_immediately()
        connection.close()
    control.close()
    wait_for_children()


def device_type(spec: HostSpec) -> str:
    """The type of the device that computes, which is not opened: "auto" is that of `pick_device`."""
    if spec.runtime.startswith("openvino"):  # computes on the CPU
        return "cpu"
    if spec.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return spec.device.partition(":")[0]


def _send(control: socket.socket, message: bytes) -> None:
    """Send a message. A peer that has closed is noticed by the next receive."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(message)


def _start_worker(
    connection: socket.socket, bundle: Bundle, host_spec: HostSpec, model: bytes, spec: WorkerSpec
) -> None:
    """Send WorkerReady, then run the worker until the connection closes. Sends a RunError if it cannot start."""
    try:
        device = pick_device(host_spec.device)
        placed = Bundle(bundle.card, bundle.student.to(device), device)
        batch = host_spec.batch or (1 if device.type == "cpu" else GPU_BATCH)
        runtime = open_runtime(host_spec.runtime, placed, batch, model)
        worker = Worker(placed, runtime, batch, host_spec.max_pixels)
        _warm_up(worker, runtime, host_spec.folder, bundle.card.eval.size, batch)
        difference = 0.0
        if spec.check_runtime:  # only the first worker: the folder may change later
            difference = check_difference(
                host_spec.runtime, runtime, network_folder(Path(host_spec.folder)), batch
            )
    except LimbeckError as error:
        wire.send(connection, error)
        return
    except Exception as error:  # each runtime raises other exceptions for an unsupported network
        log.exception("a worker cannot start")
        reason = f"runtime '{host_spec.runtime}' cannot run this bundle: {_one_line(error)}"
        wire.send(connection, RunError(f"'{host_spec.folder}': {reason}"))
        return
    info = _model_info(bundle, host_spec, str(device), batch, difference)
    wire.send(connection, WorkerReady(os.getpid(), info))
    run_worker(connection, worker)


def _warm_up(worker: Worker, runtime: Runtime, folder: str, size: int, batch: int) -> None:
    """Load decoders and kernels by classifying blank images. Raises RunError if that fails."""
    try:
        runtime(torch.zeros(batch, size, size, 3, dtype=torch.uint8))
    except Exception as error:  # each runtime raises other exceptions
        if not is_out_of_memory(error):  # the worker halves its batch if memory runs out
            raise RunError(f"'{folder}' cannot classify an image of {size} px: {_one_line(error)}") from None
    for result in worker.run([Task(image) for image in _blank_images(size)]):
        if isinstance(result.value, LimbeckError):
            raise RunError(f"'{folder}' cannot classify a blank image: {result.value}")


def _card_digest(folder: Path) -> str:
    """The digest of a bundle's card; "" if it cannot be read: `open_bundle` reports the error."""
    try:
        return card_digest((folder / CARD_NAME).read_bytes())
    except (OSError, ValueError):
        return ""


def _blank_images(size: int) -> list[bytes]:
    """A black JPEG and a black PNG."""
    files = [BytesIO(), BytesIO()]
    for kind, file in zip(("JPEG", "PNG"), files, strict=True):
        Image.new("RGB", (2 * size, 2 * size)).save(file, kind)
    return [file.getvalue() for file in files]


def _model_info(bundle: Bundle, spec: HostSpec, device: str, batch: int, difference: float) -> ModelInfo:
    card = bundle.card
    return ModelInfo(
        name=spec.name or card.network.name,
        version=spec.version or card.sha256[:8],
        network=card.network.name,
        classes=card.classes,
        heads=card.heads,
        fusion=card.fusion,
        size=card.eval.size,
        accuracy=card.accuracy,
        sha256=card.sha256,
        card=spec.card,
        runtime=spec.runtime,
        device=device,
        difference=difference,
        batch=batch,
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
