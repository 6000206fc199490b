"""Ten times what a server can do is asked of it: how fast it refuses, and what it still answers.

    limbeck serve bundle --port 8080 --deadline 2 &
    python benchmarks/overload.py http://127.0.0.1:8080 [--seconds 20] [--times 10] [--connections 4]

First so many connections ask again as soon as they are answered: that is the capacity. Then requests go out at ten
times that rate, each on a connection of its own and whether or not those before it are answered. Prints one JSON
line: of the 503s the median and the 99th percentile in milliseconds, goodput as a share of the capacity, the 99th
percentile of the accepted. The flood takes its share of the same cores; with a heavier model it is a smaller one.
"""

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np
from flood import flood, make_photo


@dataclass
class Replies:
    """By status: how often, and seconds from the first byte sent to the last received."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry_after: int = 0

    def ms(self, status: int, percentile: float) -> float | None:
        """Of the replies of one status; None where there is none."""
        found = self.seconds.get(status)
        return round(1000 * float(np.percentile(found, percentile)), 1) if found else None


async def ask(host: str, port: int, request: bytes, replies: Replies) -> None:
    """One request on a connection of its own; status 0 where that was broken."""
    status = 0
    try:
        reader, writer = await asyncio.open_connection(host, port)
        began = time.perf_counter()
        writer.write(request)
        reply = await reader.read()
        writer.close()
    except OSError:
        began, reply = time.perf_counter(), b""
    if found := re.match(rb"HTTP/1.1 (\d+)", reply):
        status = int(found[1])
    replies.seconds.setdefault(status, []).append(time.perf_counter() - began)
    replies.without_retry_after += status == 503 and b"retry-after: " not in reply.lower()


async def overload(host: str, port: int, image: bytes, rate: float, seconds: float) -> Replies:
    """Ask at a steady rate, whatever comes back; returns when all is answered."""
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(image)}\r\n\r\n"
    request, replies, began = head.encode() + image, Replies(), time.perf_counter()
    async with asyncio.TaskGroup() as asked:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            asked.create_task(ask(host, port, request, replies))
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", type=httpx.URL)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--connections", type=int, default=4)
    options = parser.parse_args()
    host, port, image = options.url.host, options.url.port, make_photo()
    before = min(5, options.seconds / 2)
    asyncio.run(flood(host, port, image, options.connections, 1))
    capacity = len(asyncio.run(flood(host, port, image, options.connections, before))) / before
    began = time.perf_counter()
    replies = asyncio.run(overload(host, port, image, options.times * capacity, options.seconds))
    good = len(replies.seconds.get(200, [])) / (time.perf_counter() - began)
    line = {
        "capacity": round(capacity, 1),
        "statuses": Counter({status: len(found) for status, found in sorted(replies.seconds.items())}),
        "refused_ms": [replies.ms(503, 50), replies.ms(503, 99)],
        "goodput": round(good / capacity, 3),
        "accepted_p99_ms": replies.ms(200, 99),
        "without_retry_after": replies.without_retry_after,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
