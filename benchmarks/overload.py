"""Send ten times the requests that a server can handle: latency of its refusals, and goodput.

    taskset -c 0 limbeck serve bundle --port 8080 --deadline 2 --workers 1 &
    taskset -c 1 python benchmarks/overload.py http://127.0.0.1:8080 [--rounds 5] [--seconds 20] [--times 10]

Each round measures the capacity before and after the overload, with a few connections that send a request as soon
as they have the last response. During the overload, requests are sent at ten times the first capacity, without
waiting for responses. Prints one JSON line per round: median and 99th percentile of the 503s in milliseconds,
goodput relative to the mean capacity, and 99th percentile of the accepted requests. With separate cores, as
above, the load generator takes no time from the server; its own use is `flood_cores`.
"""

import argparse
import asyncio
import json
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np
import uvloop
from flood import flood, make_photo


@dataclass
class Replies:
    """seconds: of each response by status, first byte sent to last received. Broken connections are status 0."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry_after: int = 0

    def ms(self, status: int, percentile: float) -> float | None:
        """A percentile of the responses with this status, in ms; None without any."""
        found = self.seconds.get(status)
        return round(1000 * float(np.percentile(found, percentile)), 1) if found else None


class Client:
    """Sends the same request repeatedly, each time on an idle connection or a new one."""

    def __init__(self, host: str, port: int, image: bytes) -> None:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
        self._host, self._port, self._request = host, port, head.encode() + image
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, replies: Replies) -> None:
        """Send one request; the status is 0 if the connection breaks."""
        started, status = time.perf_counter(), 0
        try:
            reader, writer = await self._connection()
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            self._free.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            head = b""
        if found := re.match(rb"HTTP/1.1 (\d+)", head):
            status = int(found[1])
        replies.seconds.setdefault(status, []).append(time.perf_counter() - started)
        replies.without_retry_after += status == 503 and b"retry-after: " not in head.lower()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():  # the server closes idle connections
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def overload(host: str, port: int, image: bytes, rate: float, seconds: float) -> Replies:
    """Send requests at a constant rate; returns when all have a response."""
    client, replies, started = Client(host, port, image), Replies(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(started + number / rate - time.perf_counter(), 0))
            tasks.create_task(client.ask(replies))
    client.close()
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", type=httpx.URL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--connections", type=int, default=4)
    options = parser.parse_args()
    host, port, image = options.url.host, options.url.port, make_photo()
    seconds = min(5, options.seconds / 2)

    def measure_capacity() -> float:
        return len(asyncio.run(flood(host, port, image, options.connections, seconds, warmup=0.5))) / seconds

    asyncio.run(flood(host, port, image, options.connections, 1))
    goodput = []
    for _ in range(options.rounds):
        first = measure_capacity()
        started, spent = time.perf_counter(), time.process_time()
        replies = uvloop.run(overload(host, port, image, options.times * first, options.seconds))
        seconds_taken = time.perf_counter() - started
        cores = (time.process_time() - spent) / seconds_taken
        capacity = (first + measure_capacity()) / 2
        goodput.append(len(replies.seconds.get(200, [])) / seconds_taken / capacity)
        line = {
            "capacity": round(capacity, 1),
            "statuses": Counter({status: len(found) for status, found in sorted(replies.seconds.items())}),
            "refused_ms": [replies.ms(503, 50), replies.ms(503, 99)],
            "goodput": round(goodput[-1], 3),
            "flood_cores": round(cores, 2),
            "accepted_p99_ms": replies.ms(200, 99),
            "without_retry_after": replies.without_retry_after,
        }
        print(json.dumps(line), flush=True)
    print(f"goodput: median {statistics.median(goodput):.3f} ({min(goodput):.3f} to {max(goodput):.3f})")


if __name__ == "__main__":
    main()
