"""Many clients of one server at once, and what is seen of it from outside."""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from typing import Any

import httpx
import psutil

WAIT_SECONDS = 60


@dataclass(frozen=True)
class Reply:
    """What one request came to; status 0 where the connection was refused or broken."""

    status: int
    seconds: float
    body: Any
    headers: Message
    sent: float = math.inf
    """When the whole request had been written, by perf_counter."""


def ask(url: str, image: bytes, **headers: str) -> Reply:
    began = time.perf_counter()
    sent = math.inf
    connection = HTTPConnection(url.removeprefix("http://"), timeout=WAIT_SECONDS)
    try:
        connection.request("POST", "/v1/classify", image, headers | {"connection": "close"})
        sent = time.perf_counter()
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, HTTPException):
        return Reply(0, time.perf_counter() - began, None, Message(), sent)
    finally:
        connection.close()
    return Reply(response.status, time.perf_counter() - began, body, response.headers, sent)


@contextmanager
def load(url: str, images: list[bytes], threads: int, keys: list[str] | None = None) -> Iterator[list[Reply]]:
    """Ask again and again from so many threads while the block runs; the replies are complete after it."""
    replies: list[Reply] = []
    stop = threading.Event()

    def run(number: int) -> None:
        own = cycle(images[number % len(images) :] + images[: number % len(images)])
        key = cycle((keys or [""])[number::threads])
        while not stop.is_set():
            replies.append(ask(url, next(own), **({"x-api-key": next(key)} if keys else {})))

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield replies
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """How long it took to come true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true in time"
        time.sleep(0.01)
    return time.monotonic() - began


def metric(url: str, name: str) -> float:
    """The sum of a metric's samples."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line))


def leaves(process: psutil.Process) -> list[psutil.Process]:
    """The model workers: processes below that have none below themselves."""
    return [child for child in process.children(recursive=True) if not child.children()]
