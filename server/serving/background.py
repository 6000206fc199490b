"""Run a blocking function in a daemon thread, which does not delay the end of the process."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a daemon thread; return its result or raise its exception.

    Unlike asyncio.to_thread, whose threads must finish before the process exits: an object store may take minutes.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            settle: Callable[[], None] = partial(future.set_result, function(*arguments))
        except BaseException as error:
            settle = partial(future.set_exception, error)

        def settle_if_pending() -> None:
            if not future.done():
                settle()

        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle_if_pending)

    Thread(target=run, daemon=True).start()
    return await future
