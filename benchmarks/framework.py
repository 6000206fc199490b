"""What a request costs beside its model: CPU-milliseconds of all processes, and requests a second.

python benchmarks/framework.py [--rounds 5] [--seconds 3] [--connections 32]

A raw body of 70 kB goes the whole way (loopback, HTTP, gate, counts, queue, worker's socket, five rows of a
thousand classes back, the top five as JSON), but the workers neither decode nor compute. Measured by turns: with
one image to a batch, as on a CPU; with up to 16, as on a GPU, where it is the framework's cost that decides; and,
as a measure of the machine, a uvicorn process that reads the same body and answers two bytes.
"""

import argparse
import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import psutil
import uvicorn
from flood import BODY_BYTES, cpu_seconds, flood
from starlette.types import Receive, Scope, Send

from server.ipc import wire
from server.ipc.messages import ModelInfo, Prediction, TaskResult, WorkerReady
from server.ipc.spawn import HostSpec
from server.serve import serve
from server.serving.supervisor import ModelHost, Supervisor
from server.settings import read_settings

WORKERS = 2
BATCHES = (1, 16)
"""The server's own defaults on a CPU and on a GPU."""
CLASSES = 1000


class _Fork(ModelHost):
    """Forks workers that answer at once."""

    def __init__(self, facts: ModelInfo) -> None:
        self._facts = facts

    def fork(self, word: bytes) -> socket.socket:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            _answer(theirs, self._facts)
        theirs.close()
        return ours

    def close(self) -> None: ...


class _Crew(Supervisor):
    """Opens no bundle."""

    def __init__(self) -> None: ...

    async def open(self, order: HostSpec) -> ModelHost:
        names = tuple(f"class number {number}" for number in range(CLASSES))
        return _Fork(
            ModelInfo(
                name="none",
                version="1",
                network="none",
                classes=names,
                heads=("class", "distill"),
                fusion="softmax-sum",
                size=224,
                accuracy={},
                sha256="0",
                card="0",
                runtime="none",
                device="cpu",
                difference=0.0,
                batch=order.batch,
            )
        )


def _answer(channel: socket.socket, facts: ModelInfo) -> NoReturn:
    rows = np.random.Generator(np.random.Philox(key=1)).random((5, CLASSES), np.float32)
    wire.send(channel, WorkerReady(os.getpid(), facts))
    while (tasks := wire.receive(channel)) is not None:
        wire.send(channel, [TaskResult(Prediction(rows), 0.1) for _ in tasks])
    os._exit(0)


@dataclass
class Server:
    """A process that serves, and what its answers cost."""

    process: psutil.Process
    host: str
    port: int
    costs: list[list[float]] = field(default_factory=list)
    """CPU-milliseconds a request in each round: of the process, and of those below it."""
    rates: list[float] = field(default_factory=list)

    def measure(self, body: bytes, connections: int, seconds: float) -> None:
        before = self._spent()
        count = len(asyncio.run(flood(self.host, self.port, body, connections, seconds)))
        self.costs.append([1000 * (now - then) / count for now, then in zip(self._spent(), before, strict=True)])
        self.rates.append(count / seconds)

    def _spent(self) -> list[float]:
        return [cpu_seconds(self.process), sum(map(cpu_seconds, self.process.children()))]

    @property
    def whole(self) -> list[float]:
        return [sum(one) for one in self.costs]


@contextmanager
def running(*words: object) -> Iterator[Server]:
    command = [sys.executable, __file__, *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = re.search(r"answers at http://(\S+):(\d+)", process.stderr.readline())
        assert found
        yield Server(psutil.Process(process.pid), found[1], int(found[2]))
        process.terminate()


async def _bare(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve_bare() -> None:
    """A uvicorn process with next to nothing to do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(_bare, log_level="error", access_log=False, lifespan="off")
        print(f"answers at http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        uvicorn.Server(config).run([listener])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    body = os.urandom(BODY_BYTES)
    with ExitStack() as stack:
        bare = stack.enter_context(running("bare"))
        ours = {batch: stack.enter_context(running("limbeck", 0, batch)) for batch in BATCHES}
        every = [bare, *ours.values()]
        for server in every:
            asyncio.run(flood(server.host, server.port, body, options.connections, 1))
        for _ in range(options.rounds):
            for server in every:
                server.measure(body, options.connections, options.seconds)
    print(f"CPU-ms a request of {BODY_BYTES} bytes; client, server and workers on the same cores")
    print(f"uvicorn, which reads the body and answers 'ok': {statistics.median(bare.whole):.3f}")
    for batch, server in ours.items():
        serving, working = (statistics.median(one) for one in zip(*server.costs, strict=True))
        ratio = statistics.median(one / other for one, other in zip(server.whole, bare.whole, strict=True))
        print(
            f"up to {batch} in a batch: {statistics.median(server.whole):.3f} ({min(server.whole):.3f} to "
            f"{max(server.whole):.3f}), {ratio:.2f}x of that: serving process {serving:.3f}, workers' sockets "
            f"{working:.3f}; {statistics.median(server.rates):.0f} requests/s"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["limbeck"]:  # and a port, and the images in a batch
        port, batch = int(sys.argv[2]), int(sys.argv[3])
        serve(_Crew(), ["none"], read_settings([], port=port, workers=WORKERS, batch=batch))
    elif sys.argv[1:] == ["bare"]:
        serve_bare()
    else:
        main()
