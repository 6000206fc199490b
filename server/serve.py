"""Run one server process until it is stopped."""

import asyncio
import errno
import logging
import os
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
from server.web.connection import Connection, connection_class
from teacher_cache.console import count_of, log_line
from teacher_cache.errors import LimbeckError

BACKLOG = 2048


def serve(supervisor: Supervisor, bundles: list[str], settings: Settings) -> None:
    """Serve bundles until SIGTERM or SIGINT, then answer running requests and return. SIGHUP reloads the bundles.

    bundles: FOLDER or URL, NAME=FOLDER or NAME@VERSION=FOLDER. supervisor: starts the workers; it stays open.

    Raises RunError if a bundle cannot be used, before the port is bound, and LimbeckError if the address or the
    API keys are invalid.
    """
    sources, keys, tracer = [Source.parse(bundle) for bundle in bundles], read_keys(settings), open_tracer()
    uvicorn_loop: Callable[[], asyncio.AbstractEventLoop] | None = uvicorn.Config(
        _no_app, log_config=None
    ).get_loop_factory()

    async def run() -> None:
        models, budget = Registry(supervisor, settings, ServerMetrics()), ByteBudget(settings.max_held_bytes)
        app = create_app(models, settings, keys, tracer, budget)
        loop, this_task = asyncio.get_running_loop(), asyncio.current_task()
        assert this_task
        loop.add_signal_handler(signal.SIGTERM, this_task.cancel)
        if settings.runtime == "torch-compile":
            log_line("limbeck: compiling the network; this may take a minute")
        try:
            await models.open(sources)
            loop.remove_signal_handler(signal.SIGTERM)
            with listen(settings) as listener:
                line = _ready_line(models, listener, needs_key=bool(keys))
                await _run(app, models, connection_class(settings, budget), settings, listener, line)
        finally:
            await models.close()

    with asyncio.Runner(loop_factory=uvicorn_loop) as runner:
        try:
            runner.run(run())
        except asyncio.CancelledError:  # SIGTERM before the server was ready
            sys.exit(128 + signal.SIGTERM)


def listen(settings: Settings) -> socket.socket:
    """Open the server's listening socket. Raises LimbeckError if the address cannot be used."""
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LimbeckError(f"port {port} on {host} is in use; choose another one with --port") from None
        if error.errno == errno.EACCES:
            raise LimbeckError(f"no permission to use port {port} on {host}; choose a --port above 1023") from None
        # Python appends the address to the system's message.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise LimbeckError(f"cannot listen on '{host}': {reason}; choose another address with --host") from None


async def _run(
    app: ASGIApp,
    models: Registry,
    connection: type[Connection],
    settings: Settings,
    listener: socket.socket,
    ready_line: str,
) -> None:
    config = uvicorn.Config(
        app,
        http=connection,
        log_config=None,  # uvicorn's default would close existing log handlers and their streams
        log_level="error",  # clients get the errors of their invalid requests
        access_log=False,
        server_header=False,
        proxy_headers=False,  # create_app trusts settings.trusted_proxies only, not FORWARDED_ALLOW_IPS
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn installs the same handler, but on exit it raises the signal again for the previous handler.
        # This makes its own handler the previous one.
        signal.signal(number, server.handle_exit)
    logging.getLogger("uvicorn.error").addFilter(_is_not_cancelled)  # requests cancelled by a second Ctrl-C
    loop, reloads = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def reload() -> None:
        task = asyncio.create_task(models.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    log_line(ready_line)
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in reloads:
            task.cancel()
        await asyncio.gather(*reloads, return_exceptions=True)


def _ready_line(models: Registry, listener: socket.socket, needs_key: bool) -> str:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = ", ".join(f"{pool.info.name} ({len(pool.info.classes)} classes)" for pool in models.pools())
    key = "-H 'X-API-Key: KEY' " if needs_key else ""
    return f"limbeck: serving {names}, answers at {url}  try: curl {key}--data-binary @image.jpg {url}/v1/classify"


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop the server; after Ctrl-C, log the number of running requests."""
        running = 0 if self.should_exit else len(self.server_state.tasks)
        super().handle_exit(sig, frame)  # first, because another signal may arrive during the log line
        if sig == signal.SIGINT and running:
            limit = self.config.timeout_graceful_shutdown
            requests = count_of(running, "request")
            log_line(f"limbeck: finishing {requests}, up to {limit} s; press Ctrl-C again to stop now")


def _is_not_cancelled(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is asyncio.CancelledError)


async def _no_app(*_: object) -> None: ...
