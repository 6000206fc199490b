"""A load generator and a test photo, shared by the server's benchmarks."""

import asyncio
import re
import time
from io import BytesIO

import numpy as np
import psutil
from PIL import Image

BODY_BYTES = 70_000


def make_photo(min_bytes: int = 0) -> bytes:
    """A 500x375 JPEG of a gradient with noise, of at least `min_bytes` bytes if quality 100 allows it."""
    noise = np.random.Generator(np.random.Philox(key=1)).normal(0, 12, (375, 500, 3))
    pixels = np.clip(np.linspace(0, 255, 500)[None, :, None] + noise, 0, 255).astype(np.uint8)
    for quality in range(60, 101, 2):
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        if file.tell() >= min_bytes:
            break
    return file.getvalue()


async def flood(
    host: str, port: int, image: bytes, connections: int, seconds: float, warmup: float = 0.0
) -> list[float]:
    """Send requests over several connections, each one after the last response; returns latencies in seconds.

    warmup: seconds before the measurement, in which the queue fills. Requests in progress at the end are completed
    but not counted, since counting the whole queue would overstate the rate.
    """
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}"
    request = f"{head}\r\n\r\n".encode() + image
    start = time.perf_counter() + warmup
    until, latencies = start + seconds, []

    async def send_requests() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert head.startswith(b"HTTP/1.1 200") and length, head
            await reader.readexactly(int(length[1]))
            if start <= time.perf_counter() < until:
                latencies.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(send_requests() for _ in range(connections)))
    return latencies


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
