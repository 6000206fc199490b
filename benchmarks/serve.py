"""The server against the bare limit: the same decode and forward in a loop, on all cores.

python benchmarks/serve.py [--runtime torch] [--rounds 3] [--seconds 8] [--connections 32]

A distilled DeiT-Ti (224 px, random weights) is asked for 500x375 JPEGs over loopback, by turns with the bare loop
in as many processes as the server has workers. Ratios are the medians of the rounds'. For one connection
the turns are of ten images, less than a second, since the machine's pace changes.
"""

import argparse
import asyncio
import http.client
import itertools
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

import psutil
import torch
from flood import cpu_seconds, flood, make_photo

from server.judged import Task
from server.runtime import open_runtime
from server.settings import cores
from server.worker import Worker
from student.bundle import open_bundle
from teacher_cache.card import Card, EvalSpec, NetworkSpec
from teacher_cache.network import create_network, save_network, weights_sha256

MODEL = "deit_tiny_distilled_patch16_224"
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1}
CLASSES = 1000
TURN = 10


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


def bare(folder: str, runtime: str, image: bytes) -> Iterator[float]:
    """Decode and forward in a loop, on one thread: the seconds of each image."""
    torch.set_num_threads(1)
    bundle = open_bundle(Path(folder), torch.device("cpu"))
    worker = Worker(bundle, open_runtime(runtime, bundle, 1), 1, 10**8)
    worker.answer([Task(image)])
    while True:
        began = time.perf_counter()
        worker.answer([Task(image)])
        yield time.perf_counter() - began


def bare_for(
    folder: str, runtime: str, image: bytes, seconds: float, out: "multiprocessing.SimpleQueue[list[float]]"
) -> None:
    """For so many seconds."""
    times = bare(folder, runtime, image)
    took = [next(times)]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        took.append(next(times))
    out.put(took[1:])


def bare_by_turns(folder: str, runtime: str, image: bytes, pipe: Connection) -> None:
    """As many images as the pipe says, again and again until it says 0."""
    times = bare(folder, runtime, image)
    next(times)
    while count := pipe.recv():
        pipe.send(list(itertools.islice(times, count)))


def bare_times(folder: Path, runtime: str, image: bytes, seconds: float, processes: int) -> list[list[float]]:
    """The seconds of each image, of each process."""
    context = multiprocessing.get_context("fork")
    out: multiprocessing.SimpleQueue[list[float]] = context.SimpleQueue()
    arguments = (str(folder), runtime, image, seconds, out)
    several = [context.Process(target=bare_for, args=arguments) for _ in range(processes)]
    for one in several:
        one.start()
    found = [out.get() for _ in several]
    for one in several:
        one.join()
    return found


def one_by_one(folder: Path, runtime: str, image: bytes, host: str, port: int, turns: int) -> tuple[float, float]:
    """Median seconds of a bare image and of a request on one connection: ten of each by turns."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    loop = context.Process(target=bare_by_turns, args=(str(folder), runtime, image, theirs), daemon=True)
    loop.start()
    client = http.client.HTTPConnection(host, port)
    took, asked = list[float](), list[float]()
    for _ in range(turns):
        ours.send(TURN)
        took += ours.recv()
        for _ in range(TURN):
            began = time.perf_counter()
            client.request("POST", "/v1/classify", image, {"Content-Type": "image/jpeg"})
            client.getresponse().read()
            asked.append(time.perf_counter() - began)
    ours.send(0)
    loop.join()
    return statistics.median(took), statistics.median(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
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
            shares, slower = [], []
            for _ in range(options.rounds):
                limit = sum(map(len, bare_times(full, options.runtime, photo, seconds, cores()))) / seconds
                took = asyncio.run(flood(host, port, photo, options.connections, seconds))
                shares.append(len(took) / seconds / limit)
                single, alone = one_by_one(full, options.runtime, photo, host, port, int(seconds))
                slower.append(alone / single)
                print(
                    f"  {limit:.1f} images/s bare, share {shares[-1]:.3f}; p50 of one {slower[-1]:.3f}x",
                    flush=True,
                )
            print(f"share of the bare limit at {options.connections} connections: {statistics.median(shares):.3f}")
            print(f"p50 at one connection: {statistics.median(slower):.3f} x bare")


if __name__ == "__main__":
    main()
