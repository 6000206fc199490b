"""One server process, from an empty port to its last answer."""

import errno
import logging
import signal
import socket
from pathlib import Path

import torch
import uvicorn

from server.app import create_app
from server.predictor import Predictor
from server.settings import Settings
from student.bundle import open_bundle
from teacher_cache.errors import LimbeckError
from teacher_cache.journal import say
from teacher_cache.world import pick_device

BACKLOG = 2048


def serve(bundle_folder: Path, host: str, port: int, device: str) -> None:
    """Serve a bundle until SIGTERM or SIGINT, then answer what is in flight and return.

    port: 0 picks a free one. Raises RunError for a bundle that cannot be used, before the port is opened, and
    LimbeckError for an address that cannot be.
    """
    torch.set_num_threads(1)  # the lanes are the parallelism
    settings = Settings(host=host, port=port)
    predictor = Predictor(open_bundle(bundle_folder, pick_device(device)), settings)
    try:
        predictor.probe().result()
        with listen(settings) as listener:
            _run(predictor, settings, listener)
    finally:
        predictor.close()


def listen(settings: Settings) -> socket.socket:
    """A socket that listens. Raises LimbeckError that says why it cannot."""
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LimbeckError(f"port {port} on {host} is in use; choose another with --port") from None
        if error.errno == errno.EACCES:
            raise LimbeckError(f"port {port} on {host} is not allowed; choose a --port above 1023") from None
        raise LimbeckError(f"cannot listen on '{host}': {error.strerror}; choose another with --host") from None


def _run(predictor: Predictor, settings: Settings, listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(predictor, settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a bad form is its sender's to know of
    server = uvicorn.Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn sets the same handler but, once done, raises the signal again for whoever held it before: us.
        signal.signal(number, server.handle_exit)
    say(_ready(predictor, listener))
    server.run(sockets=[listener])


def _ready(predictor: Predictor, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    card = predictor.bundle.card
    return (
        f"limbeck: {card.network.name} ({len(card.classes)} classes) answers at {url}"
        f"  try: curl --data-binary @image.jpg {url}/v1/classify"
    )
