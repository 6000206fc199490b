"""The server against the bare limit: the same decode and forward in a loop, on all cores.

python benchmarks/serve.py [--runtime torch] [--rounds 3] [--seconds 8] [--connections 32]

A distilled DeiT-Ti (224 px, random weights) is asked for 500x375 JPEGs over loopback, by turns with the bare loop
in as many processes as the server has workers. Ratios are the medians of the rounds'. What the framework costs is
the CPU time of the serving process for a request with a body of 70 kB, and of a worker to take it from its socket
and give the answer back: the model's own time is in neither.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from flood import BODY_BYTES, cpu_seconds, flood, make_photo

from server import wire
from server.judged import Done, Judged, Task
from server.runtime import open_runtime
from server.settings import cores
from server.worker import Worker
from student.bundle import open_bundle
from teacher_cache.network import Card, EvalSpec, NetworkSpec, create_network, save_network, weights_sha256

MODEL = "deit_tiny_distilled_patch16_224"
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1}
CLASSES = 1000


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


def bare(
    folder: str, runtime: str, image: bytes, seconds: float, out: "multiprocessing.SimpleQueue[list[float]]"
) -> None:
    """Decode and forward in a loop, on one thread."""
    torch.set_num_threads(1)
    bundle = open_bundle(Path(folder), torch.device("cpu"))
    worker = Worker(bundle, open_runtime(runtime, bundle, 1), 1, 10**8)
    worker.answer([Task(image)])
    until, took = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        began = time.perf_counter()
        worker.answer([Task(image)])
        took.append(time.perf_counter() - began)
    out.put(took)


def bare_times(folder: Path, runtime: str, image: bytes, seconds: float, processes: int) -> list[list[float]]:
    """The seconds of each image, of each process."""
    context = multiprocessing.get_context("fork")
    out: multiprocessing.SimpleQueue[list[float]] = context.SimpleQueue()
    arguments = (str(folder), runtime, image, seconds, out)
    several = [context.Process(target=bare, args=arguments) for _ in range(processes)]
    for one in several:
        one.start()
    found = [out.get() for _ in several]
    for one in several:
        one.join()
    return found


def wire_ms(image: bytes, count: int = 500) -> float:
    """CPU-milliseconds for a worker to take a task from its socket and give an answer back."""
    ours, theirs = socket.socketpair()
    answer = [Done(Judged(np.zeros((5, CLASSES), np.float32)), 1.0)]
    spent: list[float] = []

    def worker() -> None:
        began = time.thread_time()
        for _ in range(count):
            wire.receive(theirs)
            wire.send(theirs, answer)
        spent.append(time.thread_time() - began)

    thread = threading.Thread(target=worker)
    thread.start()
    for _ in range(count):
        wire.send(ours, [Task(image)])
        wire.receive(ours)
    thread.join()
    return 1000 * spent[0] / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    photo, heavy, seconds = make_photo(), make_photo(BODY_BYTES), options.seconds
    with tempfile.TemporaryDirectory() as temporary:
        small = make_bundle(Path(temporary, "small"), SMALL)
        with running(small) as (host, port, process, _):
            asyncio.run(flood(host, port, heavy, options.connections, 1))
            costs = []
            for _ in range(options.rounds):
                before = cpu_seconds(process)
                took = asyncio.run(flood(host, port, heavy, options.connections, seconds))
                costs.append(1000 * (cpu_seconds(process) - before) / len(took))
            beside = wire_ms(heavy)
            print(f"framework, CPU-ms for {len(heavy)} bytes: serving process {statistics.median(costs):.3f}")
            print(f"  ({min(costs):.3f} to {max(costs):.3f}), a worker's socket {beside:.3f}", flush=True)
        full = make_bundle(Path(temporary, "full"), {})
        with running(full, "--runtime", options.runtime) as (host, port, process, ready):
            family = [process, *process.children(recursive=True)]
            before, then = sum(map(cpu_seconds, family)), time.perf_counter()
            time.sleep(5)
            idle = (sum(map(cpu_seconds, family)) - before) / (time.perf_counter() - then)
            memory = sum(one.memory_full_info().pss for one in family) / 1e6
            print(f"ready after {ready:.1f} s, idle {100 * idle:.2f} % of a core, {memory:.0f} MB", flush=True)
            shares, slower = [], []
            for _ in range(options.rounds):
                limit = sum(map(len, bare_times(full, options.runtime, photo, seconds, cores()))) / seconds
                took = asyncio.run(flood(host, port, photo, options.connections, seconds))
                shares.append(len(took) / seconds / limit)
                single = statistics.median(bare_times(full, options.runtime, photo, seconds / 2, 1)[0])
                alone = statistics.median(asyncio.run(flood(host, port, photo, 1, seconds / 2)))
                slower.append(alone / single)
                print(
                    f"  {limit:.1f} images/s bare, share {shares[-1]:.3f}; p50 of one {slower[-1]:.3f}x",
                    flush=True,
                )
            print(f"share of the bare limit at {options.connections} connections: {statistics.median(shares):.3f}")
            print(f"p50 at one connection: {statistics.median(slower):.3f} x bare")


if __name__ == "__main__":
    main()
