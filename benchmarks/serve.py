"""The server against the bare limit: the same decode and forward in a loop, on all cores.

python benchmarks/serve.py [--runtime torch] [--rounds 16] [--seconds 4] [--connections 32] [--apart]

A distilled DeiT-Ti (224 px, random weights) is asked for 500x375 JPEGs over loopback, by turns with the bare loop
in as many processes as the server has workers. Ratios are told as the rounds' median and quartiles; the turns are
short, of one connection ten images each, since the machine's pace changes. With --apart the client has a core of
its own, as on another machine, and the server and the loop have the others.
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
from server.settings import cores
from server.workers.runtime import open_runtime, prepare_runtime
from server.workers.worker import Worker
from student.bundle.bundle import open_bundle
from teacher_cache.models.card import Card
from teacher_cache.models.network import create_network
from teacher_cache.models.spec import EvalSpec, NetworkSpec
from teacher_cache.models.weights import save_network, weights_sha256

MODEL = "deit_tiny_distilled_patch16_224"
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1}
CLASSES = 1000
TURN, TURNS = 10, 8


def make_bundle(folder: Path, args: dict[str, int]) -> Path:
    """A bundle of random weights."""
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
def running(folder: Path, *options: str) -> Iterator[tuple[str, int, psutil.Process, float]]:
    """Host, port, process and seconds to be ready, of a server."""
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
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"answers at http://(\S+):(\d+)", line)
        if not found:
            raise SystemExit(line)
        yield found[1], int(found[2]), psutil.Process(process.pid), time.perf_counter() - began
        process.terminate()


class Bare:
    """The decode and the forward in a loop, on one thread in each of some processes, when it is asked for."""

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
        """The seconds of every image, of all processes; each does so many, or begins none after so long."""
        for pipe in self._pipes:
            pipe.send((count, seconds))
        return [took for pipe in self._pipes for took in pipe.recv()]

    def rate(self, seconds: float) -> float:
        """Images a second of all processes together."""
        took = self.run(seconds=seconds)
        return len(self._pipes) * len(took) / sum(took)


def _loop(folder: str, runtime: str, image: bytes, pipe: Connection) -> None:
    torch.set_num_threads(1)
    bundle = open_bundle(Path(folder), torch.device("cpu"))
    model = prepare_runtime(runtime, bundle, Path(folder))
    worker = Worker(bundle, open_runtime(runtime, bundle, 1, model), 1, 10**8)
    while True:
        count, seconds = pipe.recv()
        took, until = list[float](), time.perf_counter() + seconds
        while len(took) < count and (began := time.perf_counter()) < until:
            worker.run([Task(image)])
            took.append(time.perf_counter() - began)
        pipe.send(took)


def one_by_one(bare: Bare, image: bytes, host: str, port: int, turns: int) -> float:
    """The median of a request on one connection as a multiple of a bare image's: ten of each by turns."""
    client = http.client.HTTPConnection(host, port)
    took, asked = list[float](), list[float]()
    for _ in range(turns):
        took += bare.run(count=TURN)
        for _ in range(TURN):
            began = time.perf_counter()
            client.request("POST", "/v1/classify", image, {"Content-Type": "image/jpeg"})
            client.getresponse().read()
            asked.append(time.perf_counter() - began)
    return statistics.median(asked) / statistics.median(took)


def quartiles(ratios: list[float]) -> str:
    """The median, and the middle half."""
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
    every = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, every[:-1] if options.apart else every)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    photo, seconds = make_photo(), options.seconds
    with tempfile.TemporaryDirectory() as temporary:
        full = make_bundle(Path(temporary, "full"), {})
        with running(full, "--runtime", options.runtime) as (host, port, process, ready):
            family = [process, *process.children(recursive=True)]
            before, then = sum(map(cpu_seconds, family)), time.perf_counter()
            time.sleep(5)
            idle = (sum(map(cpu_seconds, family)) - before) / (time.perf_counter() - then)
            memory = sum(one.memory_full_info().pss for one in family) / 1e6
            print(f"ready after {ready:.1f} s, idle {100 * idle:.2f} % of a core, {memory:.0f} MB", flush=True)
            bare, single = (Bare(full, options.runtime, photo, processes) for processes in (cores(), 1))
            os.sched_setaffinity(0, every[-1:] if options.apart else every)
            asyncio.run(flood(host, port, photo, options.connections, seconds))
            shares = []
            for _ in range(options.rounds):
                limit = bare.rate(seconds)
                took = asyncio.run(flood(host, port, photo, options.connections, seconds, warm=0.5))
                shares.append(len(took) / seconds / limit)
                print(f"  {limit:.1f} images/s bare, share {shares[-1]:.3f}", flush=True)
            print(f"share of the bare limit at {options.connections} connections: {quartiles(shares)}")
            slower = [one_by_one(single, photo, host, port, TURNS) for _ in range(options.rounds)]
            print(f"p50 at one connection: {quartiles(slower)} x bare")


if __name__ == "__main__":
    main()
