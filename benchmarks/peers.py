"""Limbeck's server compared with LitServe and BentoML: same network, same decode and forward pass.

    python benchmarks/peers.py --venv /tmp/peers [--runtime torch] [--rounds 16] [--seconds 3] [--connections 32]

The other servers are installed into their own virtual environment, which also sees the packages of this one. Each
runs two workers with one thread and our own code, takes the raw body, and has no batching and no access log
(LitServe: fast_queue, one API server). For each server, the output has:

- CPU-milliseconds per request of 70 kB, with workers that compute nothing;
- images per second relative to the bare loop (decode and forward pass on all cores) and relative to Limbeck:
  medians of many short turns, during which the other servers are stopped;
- memory.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from flood import BODY_BYTES, cpu_seconds, flood, make_photo
from fuzz import memory
from serve import BareLoop, make_bundle, quartiles

FOLDER = Path(__file__).parent
PEERS = ("litserve", "bentoml")
START_SECONDS = 60
WORKERS = 2


@dataclass(frozen=True)
class RunningServer:
    """A server process that is ready."""

    process: psutil.Process
    port: int

    def processes(self) -> list[psutil.Process]:
        """The server process and its descendants."""
        return [self.process, *self.process.children(recursive=True)]

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Resume all processes of the server; suspend them again on exit."""
        for one in self.processes():
            one.resume()
        yield
        for one in self.processes():
            one.suspend()

    def flood(self, image: bytes, connections: int, seconds: float, warm: float = 0.0) -> list[float]:
        """Send requests; returns latencies in seconds."""
        return asyncio.run(flood("127.0.0.1", self.port, image, connections, seconds, warm))


def make_venv(folder: Path) -> Path:
    """Create the virtual environment if it does not exist, and install PEERS; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (site,) = folder.glob("lib/python3.*/site-packages")
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "beside.pth").write_text(packages, encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


@contextmanager
def running_server(name: str, python: Path, folder: Path | None, runtime: str) -> Iterator[RunningServer]:
    """Start a server. folder: of the bundle; None for workers that compute nothing."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if name == "limbeck" and folder:
        command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port", str(port)]
        command += ["--device", "cpu", "--workers", str(WORKERS), "--runtime", runtime]
    elif name == "limbeck":
        command = [sys.executable, str(FOLDER / "framework.py"), "limbeck", str(port), "1"]
    else:
        command = [str(python), str(FOLDER / f"peer_{name}.py"), str(port)]
    variables = {"PEER_BUNDLE": str(folder or ""), "PEER_RUNTIME": runtime, "PEER_WORKERS": str(WORKERS)}
    paths = os.pathsep.join([str(FOLDER), str(FOLDER.parent)])
    environment = os.environ | variables | {"PYTHONPATH": paths, "BENTOML_DO_NOT_TRACK": "true"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        running = RunningServer(psutil.Process(process.pid), port)
        try:
            _wait_until_ready(running)
            yield running
        finally:
            processes = running.processes()
            for one in processes:
                one.resume()
            process.terminate()
            _, remaining = psutil.wait_procs(processes, timeout=15)
            for one in remaining:  # LitServe leaves processes running
                one.kill()


def _wait_until_ready(server: RunningServer) -> None:
    photo, deadline = make_photo(), time.monotonic() + START_SECONDS
    while True:
        try:
            server.flood(photo, 1, 0.01)
            return
        except (OSError, AssertionError, asyncio.IncompleteReadError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--venv", type=Path, required=True, help="folder of the virtual environment, outside the repository"
    )
    parser.add_argument("--names", nargs="*", default=PEERS, help="the servers to compare")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    python, photo, large_photo = make_venv(options.venv), make_photo(), make_photo(BODY_BYTES)
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    names = ["limbeck", *options.names]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = make_bundle(Path(temporary, "bundle"), {})
        for name in names:
            with running_server(name, python, None, options.runtime) as server:
                server.flood(large_photo, options.connections, 1)
                before = sum(map(cpu_seconds, server.processes()))
                count = len(server.flood(large_photo, options.connections, options.seconds))
                cost = 1000 * (sum(map(cpu_seconds, server.processes())) - before) / count
            with running_server(name, python, folder, options.runtime) as server:
                server.flood(photo, options.connections, 2)
                megabytes = memory(server.process.pid) / 1e6
            rate = count / options.seconds
            print(f"{name:9} {cost:.2f} CPU-ms per request, {rate:.0f} requests/s; {megabytes:.0f} MB", flush=True)
        servers: dict[str, RunningServer] = {}
        for name in names:
            servers[name] = stack.enter_context(running_server(name, python, folder, options.runtime))
            with servers[name].resumed():
                servers[name].flood(photo, options.connections, 2)
        bare = BareLoop(folder, options.runtime, photo, WORKERS)
        rates: dict[str, list[float]] = {name: [] for name in ("bare", *servers)}
        for number in range(options.rounds):
            rates["bare"].append(bare.rate(options.seconds))
            order = deque(servers)
            order.rotate(number)
            for name in order:
                with servers[name].resumed():
                    latencies = servers[name].flood(photo, options.connections, options.seconds, warm=0.5)
                rates[name].append(len(latencies) / options.seconds)
            line = ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items())
            print(f"  images/s: {line}", flush=True)
        for name in names:
            against_bare, against_limbeck = (
                quartiles([one / other for one, other in zip(rates[name], rates[base], strict=True)])
                for base in ("bare", "limbeck")
            )
            print(f"{name:9} {against_bare} of the bare loop, {against_limbeck} of limbeck")


if __name__ == "__main__":
    main()
