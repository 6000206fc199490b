"""The server's throughput and latency relative to the same decode and forward pass in a loop on all cores.

    python benchmarks/serve.py [--runtime torch] [--rounds 16] [--seconds 4] [--connections 32] [--apart]

The model is a distilled DeiT-Ti (224 px, random weights), the images are 500x375 JPEGs sent over loopback. The
server and the bare loop alternate; the loop has as many processes as the server has workers. The output is the
median and the quartiles of the rounds' ratios. Turns are short (ten images each for one connection), since the
machine's speed varies. With --apart, the client has one core, as if on another machine, and the server and the
loop have the others.
"""

import argparse
import asyncio
import http.client
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch
from flood import cpu_seconds, flood, make_photo

from server.ipc.messages import Task
from server.workers.runtime import open_runtime, prepare_runtime
from server.workers.worker import Worker
from student.bundle.bundle import open_bundle
from teacher_cache.distributed.machine import cores
from teacher_cache.models.card import Card
from teacher_cache.models.network import create_network
from teacher_cache.models.spec import EvalSpec, NetworkSpec
from teacher_cache.models.weights import save_network, weights_sha256

MODEL = "deit_tiny_distilled_patch16_224"
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1}
CLASSES = 1000
REQUESTS_PER_TURN, TURNS = 10, 8


def make_bundle(folder: Path, args: dict[str, int]) -> Path:
    """Write a bundle with random weights."""
    spec = NetworkSpec(name=MODEL, args=args)
    state = create_network(spec, CLASSES).state_dict()
    card = Card(
        format=1,
        network=spec,
        eval=EvalSpec(size=args.get("img_size", 224), crop=0.9),
        classes=tuple(str(number) for number in range(CLASSES)),
        heads=("class", "distill"),
        fusion="softmax-sum",
        sha256=weights_sha256(state),
        accuracy={},
        recipe={},
    )
    save_network(folder, card, state)
    return folder


@contextmanager
def running_server(folder: Path, *options: str) -> Iterator[tuple[str, int, psutil.Process, float]]:
    """Run a server; yields its host, port, process and seconds from start to ready."""
    command = [
        sys.executable,
        "-m",
        "server.cli",
        "serve",
        str(folder),
        "--port",
        "0",
        "--device",
        "cpu",
        *options,
    ]
    started = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"http://(127\.0\.0\.1):(\d+)", line)
        if not found:
            raise SystemExit(line)
        yield found[1], int(found[2]), psutil.Process(process.pid), time.perf_counter() - started
        process.terminate()


class BareLoop:
    """Processes that run decode and forward pass in a loop on request, each with one thread."""

    def __init__(self, folder: Path, runtime: str, image: bytes, processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            arguments = (str(folder), runtime, image, theirs)
            context.Process(target=_loop, args=arguments, daemon=True).start()
            self._pipes.append(ours)
        self.run(count=1)

    def run(self, count: int = sys.maxsize, seconds: float = math.inf) -> list[float]:
        """Latencies in seconds. Each process runs `count` images, or as many as it starts within `seconds`."""
        for pipe in self._pipes:
            pipe.send((count, seconds))
        return [latency for pipe in self._pipes for latency in pipe.recv()]

    def rate(self, seconds: float) -> float:
        """Images per second of all processes together."""
        latencies = self.run(seconds=seconds)
        return len(self._pipes) * len(latencies) / sum(latencies)


def _loop(folder: str, runtime: str, image: bytes, pipe: Connection) -> None:
    torch.set_num_threads(1)
    bundle = open_bundle(Path(folder), torch.device("cpu"))
    model = prepare_runtime(runtime, bundle, Path(folder))
    worker = Worker(bundle, open_runtime(runtime, bundle, 1, model), 1, 10**8)
    while True:
        count, seconds = pipe.recv()
        latencies, deadline = list[float](), time.perf_counter() + seconds
        while len(latencies) < count and (started := time.perf_counter()) < deadline:
            worker.run([Task(image)])
            latencies.append(time.perf_counter() - started)
        pipe.send(latencies)


def latency_ratio(bare: BareLoop, image: bytes, host: str, port: int, turns: int) -> float:
    """Median latency on one connection divided by that of the bare loop; turns of REQUESTS_PER_TURN alternate."""
    client = http.client.HTTPConnection(host, port)
    bare_latencies, latencies = list[float](), list[float]()
    for _ in range(turns):
        bare_latencies += bare.run(count=REQUESTS_PER_TURN)
        for _ in range(REQUESTS_PER_TURN):
            started = time.perf_counter()
            client.request("POST", "/v1/classify", image, {"Content-Type": "image/jpeg"})
            client.getresponse().read()
            latencies.append(time.perf_counter() - started)
    return statistics.median(latencies) / statistics.median(bare_latencies)


def quartiles(ratios: list[float]) -> str:
    """Median and quartiles as text."""
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--apart", action="store_true")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:-1] if options.apart else cpus)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    photo, seconds = make_photo(), options.seconds
    with tempfile.TemporaryDirectory() as temporary:
        full = make_bundle(Path(temporary, "full"), {})
        with running_server(full, "--runtime", options.runtime) as (host, port, process, ready):
            processes = [process, *process.children(recursive=True)]
            before, started = sum(map(cpu_seconds, processes)), time.perf_counter()
            time.sleep(5)
            idle = (sum(map(cpu_seconds, processes)) - before) / (time.perf_counter() - started)
            memory = sum(one.memory_full_info().pss for one in processes) / 1e6
            print(f"ready after {ready:.1f} s, idle {100 * idle:.2f} % of a core, {memory:.0f} MB", flush=True)
            bare, single = (BareLoop(full, options.runtime, photo, processes) for processes in (cores(), 1))
            os.sched_setaffinity(0, cpus[-1:] if options.apart else cpus)
            asyncio.run(flood(host, port, photo, options.connections, seconds))
            shares = []
            for _ in range(options.rounds):
                limit = bare.rate(seconds)
                latencies = asyncio.run(flood(host, port, photo, options.connections, seconds, warmup=0.5))
                shares.append(len(latencies) / seconds / limit)
                print(f"  bare loop {limit:.1f} images/s, server {shares[-1]:.3f} of it", flush=True)
            print(f"throughput relative to the bare loop, {options.connections} connections: {quartiles(shares)}")
            ratios = [latency_ratio(single, photo, host, port, TURNS) for _ in range(options.rounds)]
            print(f"p50 relative to the bare loop, one connection: {quartiles(ratios)}")


if __name__ == "__main__":
    main()
