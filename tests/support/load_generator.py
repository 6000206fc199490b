"""Concurrent clients of one server, and its state from outside."""

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
    """Result of one request; status is 0 if the connection was refused or broken."""

    status: int
    seconds: float
    body: Any
    headers: Message
    sent: float = math.inf
    """perf_counter when the whole request had been written."""


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
    """Send requests from N threads while the block runs; the list of replies is complete after it."""
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
    """Wait until the condition is true; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not true within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began


def metric(url: str, name: str) -> float:
    """Return the sum of a metric's samples."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line))


def leaves(process: psutil.Process) -> list[psutil.Process]:
    """Return the model workers: descendants without children."""
    return [child for child in process.children(recursive=True) if not child.children()]
