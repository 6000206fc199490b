"""Overhead of the server per request: CPU-milliseconds of all processes, and requests per second.

python benchmarks/framework.py [--rounds 5] [--seconds 3] [--connections 32]

Each request takes the normal path: a raw body of 70 kB, HTTP, middleware, metrics, queue, the worker's socket,
five rows of 1000 classes back, and the top five as JSON. But the workers neither decode nor compute. Three servers
are measured in alternation:
- one image per batch, as on a CPU;
- up to 16 images per batch, as on a GPU (the overhead matters most);
- for comparison, a uvicorn process that reads the same body and answers two bytes.
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
"""The server's defaults on a CPU and on a GPU."""
CLASSES = 1000


class _ModelHost(ModelHost):
    """Forks workers that answer immediately."""

    def __init__(self, info: ModelInfo) -> None:
        self._info, self.device_type = info, info.device

    def fork(self, check_runtime: bool) -> socket.socket:
        connection, worker_end = socket.socketpair()
        if os.fork() == 0:
            connection.close()
            _run_worker(worker_end, self._info)
        worker_end.close()
        return connection

    def close(self) -> None: ...


class _Supervisor(Supervisor):
    """Opens no bundle."""

    def __init__(self) -> None: ...

    async def open(self, spec: HostSpec) -> ModelHost:
        return _ModelHost(
            ModelInfo(
                name="none",
                version="1",
                network="none",
                classes=tuple(f"class number {number}" for number in range(CLASSES)),
                heads=("class", "distill"),
                fusion="softmax-sum",
                size=224,
                accuracy={},
                sha256="0",
                card="0",
                runtime="none",
                device="cpu",
                difference=0.0,
                batch=spec.batch,
            )
        )


def _run_worker(connection: socket.socket, info: ModelInfo) -> NoReturn:
    rows = np.random.Generator(np.random.Philox(key=1)).random((5, CLASSES), np.float32)
    wire.send(connection, WorkerReady(os.getpid(), info))
    while (tasks := wire.receive(connection)) is not None:
        wire.send(connection, [TaskResult(Prediction(rows), 0.1) for _ in tasks])
    os._exit(0)


@dataclass
class Server:
    """A server process and its measurements."""

    process: psutil.Process
    host: str
    port: int
    costs: list[list[float]] = field(default_factory=list)
    """CPU-milliseconds per request in each round: of the process, and of its children."""
    rates: list[float] = field(default_factory=list)
    """Requests per second in each round."""

    def measure(self, body: bytes, connections: int, seconds: float) -> None:
        before = self._cpu_seconds()
        count = len(asyncio.run(flood(self.host, self.port, body, connections, seconds)))
        self.costs.append(
            [1000 * (now - then) / count for now, then in zip(self._cpu_seconds(), before, strict=True)]
        )
        self.rates.append(count / seconds)

    def _cpu_seconds(self) -> list[float]:
        return [cpu_seconds(self.process), sum(map(cpu_seconds, self.process.children()))]

    @property
    def total_costs(self) -> list[float]:
        return [sum(cost) for cost in self.costs]


@contextmanager
def run_server(*arguments: object) -> Iterator[Server]:
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr
        found = re.search(r"http://(\S+?):(\d+)", process.stderr.readline())
        assert found
        yield Server(psutil.Process(process.pid), found[1], int(found[2]))
        process.terminate()


async def _minimal_app(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve_minimal() -> None:
    """Run a uvicorn process that does almost nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(_minimal_app, log_level="error", access_log=False, lifespan="off")
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        uvicorn.Server(config).run([listener])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    body = os.urandom(BODY_BYTES)
    with ExitStack() as stack:
        minimal = stack.enter_context(run_server("minimal"))
        limbeck = {batch: stack.enter_context(run_server("limbeck", 0, batch)) for batch in BATCHES}
        servers = [minimal, *limbeck.values()]
        for server in servers:
            asyncio.run(flood(server.host, server.port, body, options.connections, 1))
        for _ in range(options.rounds):
            for server in servers:
                server.measure(body, options.connections, options.seconds)
    print(f"CPU-ms per request of {BODY_BYTES} bytes; client, server and workers on the same cores")
    print(f"uvicorn, which reads the body and answers 'ok': {statistics.median(minimal.total_costs):.3f}")
    for batch, server in limbeck.items():
        serving, working = (statistics.median(costs) for costs in zip(*server.costs, strict=True))
        pairs = zip(server.total_costs, minimal.total_costs, strict=True)
        ratio = statistics.median(cost / minimal_cost for cost, minimal_cost in pairs)
        costs = server.total_costs
        print(
            f"up to {batch} per batch: {statistics.median(costs):.3f} ({min(costs):.3f} to "
            f"{max(costs):.3f}), {ratio:.2f}x of that: serving process {serving:.3f}, workers' sockets "
            f"{working:.3f}; {statistics.median(server.rates):.0f} requests/s"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["limbeck"]:  # then the port, and the images per batch
        port, batch = int(sys.argv[2]), int(sys.argv[3])
        serve(_Supervisor(), ["none"], read_settings([], port=port, workers=WORKERS, batch=batch))
    elif sys.argv[1:] == ["minimal"]:
        serve_minimal()
    else:
        main()
