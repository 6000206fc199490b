"""Work in a thread that nobody waits for when the server ends: a store may take minutes to answer."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(act: Callable[..., T], *words: object) -> T:
    """What `act` returns or raises, as by asyncio.to_thread, whose threads would hold up the process's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            settle: Callable[[], None] = partial(future.set_result, act(*words))
        except BaseException as error:
            settle = partial(future.set_exception, error)

        def tell() -> None:
            if not future.done():
                settle()

        with suppress(RuntimeError):  # the loop has ended, and nobody asks any more
            loop.call_soon_threadsafe(tell)

    Thread(target=run, daemon=True).start()
    return await future
