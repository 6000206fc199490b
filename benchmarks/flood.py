"""Requests as fast as a server answers them, and a photo to send: what the server's benchmarks share."""

import asyncio
import re
import time
from io import BytesIO

import numpy as np
import psutil
from PIL import Image

BODY_BYTES = 70_000


def make_photo(least_bytes: int = 0) -> bytes:
    """A 500x375 JPEG of noise over a gradient, of at least so many bytes."""
    noise = np.random.Generator(np.random.Philox(key=1)).normal(0, 12, (375, 500, 3))
    pixels = np.clip(np.linspace(0, 255, 500)[None, :, None] + noise, 0, 255).astype(np.uint8)
    for quality in range(60, 101, 2):
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        if file.tell() >= least_bytes:
            break
    return file.getvalue()


async def flood(
    host: str, port: int, image: bytes, connections: int, seconds: float, path: str = "/v1/classify"
) -> list[float]:
    """Seconds of each answer, of so many connections that each ask again as soon as they are answered."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    request = head.encode() + image
    until, took = time.perf_counter() + seconds, []

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert head.startswith(b"HTTP/1.1 200") and length, head
            await reader.readexactly(int(length[1]))
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return took


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
