"""One server process, from an empty port to its last answer."""

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from server.app import create_app
from server.metrics import ServerMetrics
from server.serving.registry import Registry, Source
from server.serving.supervisor import Supervisor
from server.settings import Settings
from server.tracing import open_tracer
from server.web.auth import read_keys
from server.web.byte_budget import ByteBudget
from server.web.connection import Connection, connection_within
from teacher_cache.console import count_of, log_line
from teacher_cache.errors import LimbeckError

BACKLOG = 2048


def serve(crew: Supervisor, bundles: list[str], settings: Settings) -> None:
    """Serve bundles until SIGTERM or SIGINT, then answer what is in flight and return. SIGHUP reads them again.

    bundles: FOLDER or URL, NAME=FOLDER or NAME@VERSION=FOLDER. crew: starts the workers, and stays open. Raises
    RunError for a bundle that cannot be used, before the port is opened, and LimbeckError for an address or keys
    that cannot be.
    """
    sources, keys, tracer = [Source.parse(bundle) for bundle in bundles], read_keys(settings), open_tracer()
    uvicorn_loop: Callable[[], asyncio.AbstractEventLoop] | None = uvicorn.Config(
        _no_app, log_config=None
    ).get_loop_factory()

    async def run() -> None:
        models, held = Registry(crew, settings, ServerMetrics()), ByteBudget(settings.max_held_bytes)
        app = create_app(models, settings, keys, tracer, held)
        loop, opening = asyncio.get_running_loop(), asyncio.current_task()
        assert opening
        loop.add_signal_handler(signal.SIGTERM, opening.cancel)
        if settings.runtime == "torch-compile":
            log_line("limbeck: compiling, which may take a minute")
        try:
            await models.open(sources)
            loop.remove_signal_handler(signal.SIGTERM)
            with listen(settings) as listener:
                await _run(app, models, connection_within(settings, held), settings, listener)
        finally:
            await models.close()

    with asyncio.Runner(loop_factory=uvicorn_loop) as runner:
        try:
            runner.run(run())
        except asyncio.CancelledError:  # told to end before it was ready
            sys.exit(128 + signal.SIGTERM)


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
        why = error.strerror or error
        raise LimbeckError(f"cannot listen on '{host}': {why}; choose another with --host") from None


async def _run(
    app: ASGIApp, models: Registry, connection: type[Connection], settings: Settings, listener: socket.socket
) -> None:
    config = uvicorn.Config(
        app,
        http=connection,
        log_config=None,  # its own would close the handlers that others have set, and their streams
        log_level="error",  # a bad request is its sender's to know of
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn sets the same handler but, once done, raises the signal again for whoever held it before: us.
        signal.signal(number, server.handle_exit)
    logging.getLogger("uvicorn.error").addFilter(_is_no_end)  # of requests that are stopped at once
    loop, reloads = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def reload() -> None:
        task = asyncio.create_task(models.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    log_line(_ready(models, listener))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in reloads:
            task.cancel()
        await asyncio.gather(*reloads, return_exceptions=True)


def _ready(models: Registry, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    told = ", ".join(f"{pool.facts.name} ({len(pool.facts.classes)} classes)" for pool in models.pools())
    return f"limbeck: {told} answers at {url}  try: curl --data-binary @image.jpg {url}/v1/classify"


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tell who pressed Ctrl-C what is still waited for."""
        left = 0 if self.should_exit else len(self.server_state.tasks)
        super().handle_exit(sig, frame)  # first: another signal may come while it is told
        if sig == signal.SIGINT and left:
            longest = self.config.timeout_graceful_shutdown
            log_line(f"limbeck: {count_of(left, 'request')} may take {longest} s more; Ctrl-C again stops at once")


def _is_no_end(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is asyncio.CancelledError)


async def _no_app(*_: object) -> None: ...
