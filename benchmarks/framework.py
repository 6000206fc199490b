"""What a request costs beside its model: CPU-milliseconds of all processes, and requests a second.

python benchmarks/framework.py [--rounds 5] [--seconds 3] [--connections 32]

A raw body of 70 kB goes the whole way (loopback, HTTP, gate, counts, queue, worker's socket, five rows of a
thousand classes back, the top five as JSON), but the workers neither decode nor compute.
"""

import argparse
import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
from typing import NoReturn

import numpy as np
import psutil
from flood import BODY_BYTES, cpu_seconds, flood

from server import wire
from server.crew import Crew, Holder
from server.judged import Begun, Done, Facts, Judged
from server.nursery import Order
from server.serve import serve
from server.settings import read_settings

WORKERS = 2
CLASSES = 1000


class _Fork(Holder):
    """Forks workers that answer at once."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def fork(self, word: bytes) -> socket.socket:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            _answer(theirs, self._facts)
        theirs.close()
        return ours

    def close(self) -> None: ...


class _Crew(Crew):
    """Opens no bundle."""

    def __init__(self) -> None: ...

    async def open(self, order: Order) -> Holder:
        names = tuple(f"class number {number}" for number in range(CLASSES))
        return _Fork(
            Facts(
                name="none",
                version="1",
                network="none",
                classes=names,
                heads=("class", "distill"),
                fusion="softmax-sum",
                size=224,
                accuracy={},
                sha256="0",
                runtime="none",
                device="cpu",
                difference=0.0,
                batch=1,
            )
        )


def _answer(channel: socket.socket, facts: Facts) -> NoReturn:
    rows = np.random.Generator(np.random.Philox(key=1)).random((5, CLASSES), np.float32)
    wire.send(channel, Begun(os.getpid(), facts))
    while (tasks := wire.receive(channel)) is not None:
        wire.send(channel, [Done(Judged(rows), 0.1) for _ in tasks])
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    body = os.urandom(BODY_BYTES)
    with subprocess.Popen([sys.executable, __file__, "serve", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = re.search(r"answers at http://(\S+):(\d+)", process.stderr.readline())
        assert found
        host, port = found[1], int(found[2])
        front = psutil.Process(process.pid)
        workers = front.children()
        asyncio.run(flood(host, port, body, options.connections, 1))
        costs, rates = [], []
        for _ in range(options.rounds):
            before = [cpu_seconds(front), sum(map(cpu_seconds, workers))]
            count = len(asyncio.run(flood(host, port, body, options.connections, options.seconds)))
            after = [cpu_seconds(front), sum(map(cpu_seconds, workers))]
            costs.append([1000 * (now - then) / count for now, then in zip(after, before, strict=True)])
            rates.append(count / options.seconds)
        process.terminate()
    serving, working = (statistics.median(one) for one in zip(*costs, strict=True))
    whole = [sum(one) for one in costs]
    print(f"CPU-ms a request of {BODY_BYTES} bytes: {statistics.median(whole):.3f}", end=" ")
    print(
        f"({min(whole):.3f} to {max(whole):.3f}): serving process {serving:.3f}, workers' sockets {working:.3f};"
    )
    print(f"  {statistics.median(rates):.0f} requests/s with client and workers on the same cores")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(_Crew(), ["none"], read_settings([], port=int(sys.argv[2]), workers=WORKERS))
    else:
        main()
