"""The server beside LitServe and BentoML: the same network, the same decode and forward, by turns in one run.

python benchmarks/peers.py --venv /tmp/peers [--runtime torch] [--rounds 3] [--seconds 6] [--connections 32]

The peers are installed into a virtual environment of their own, which sees this one's packages. Each runs two
workers of one thread that call the very code of our own, takes the raw body, and has no batching and no access log
(LitServe: fast_queue, one API server). Printed for each: images a second as a share of the bare limit (decode and
forward in a loop on all cores), CPU-milliseconds a request of 70 kB where the workers compute nothing, and memory.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from flood import BODY_BYTES, cpu_seconds, flood, make_photo
from fuzz import memory
from serve import bare_times, make_bundle

HERE = Path(__file__).parent
PEERS = ("litserve", "bentoml")
START_SECONDS = 60
WORKERS = 2


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: psutil.Process
    port: int

    def family(self) -> list[psutil.Process]:
        """It, and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def flood(self, image: bytes, connections: int, seconds: float) -> list[float]:
        """Seconds of each answer."""
        return asyncio.run(flood("127.0.0.1", self.port, image, connections, seconds))


def make_venv(folder: Path) -> Path:
    """Its Python; the peers are installed if they are not."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (site,) = folder.glob("lib/python3.*/site-packages")
        own = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "beside.pth").write_text(own)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


@contextmanager
def running(name: str, python: Path, folder: Path | None, runtime: str) -> Iterator[Running]:
    """A server of a bundle, or of none: then its workers answer at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if name == "limbeck" and folder:
        command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port", str(port)]
        command += ["--device", "cpu", "--workers", str(WORKERS), "--runtime", runtime]
    elif name == "limbeck":
        command = [sys.executable, str(HERE / "framework.py"), "limbeck", str(port), "1"]
    else:
        command = [str(python), str(HERE / f"peer_{name}.py"), str(port)]
    given = {"PEER_BUNDLE": str(folder or ""), "PEER_RUNTIME": runtime, "PEER_WORKERS": str(WORKERS)}
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = os.environ | given | {"PYTHONPATH": paths, "BENTOML_DO_NOT_TRACK": "true"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        running = Running(psutil.Process(process.pid), port)
        try:
            _wait(running)
            yield running
        finally:
            family = running.family()
            process.terminate()
            _, left = psutil.wait_procs(family, timeout=15)
            for one in left:  # LitServe leaves some
                one.kill()


def _wait(running: Running) -> None:
    photo, until = make_photo(), time.monotonic() + START_SECONDS
    while True:
        try:
            running.flood(photo, 1, 0.01)
            return
        except (OSError, AssertionError, asyncio.IncompleteReadError):
            if time.monotonic() > until:
                raise
            time.sleep(0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True, help="a folder outside of the tree")
    parser.add_argument("--names", nargs="*", default=["limbeck", *PEERS])
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    python, photo, heavy = make_venv(options.venv), make_photo(), make_photo(BODY_BYTES)
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    costs: dict[str, float] = {}
    for name in options.names:
        with running(name, python, None, options.runtime) as server:
            server.flood(heavy, options.connections, 1)
            before = sum(map(cpu_seconds, server.family()))
            count = len(server.flood(heavy, options.connections, options.seconds))
            costs[name] = 1000 * (sum(map(cpu_seconds, server.family())) - before) / count
            print(
                f"  {name}: {costs[name]:.2f} CPU-ms a request, {count / options.seconds:.0f} a second", flush=True
            )
    shares: dict[str, list[float]] = {name: [] for name in options.names}
    megabytes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_bundle(Path(temporary, "bundle"), {})
        for _ in range(options.rounds):
            for name in options.names:
                before = _limit(folder, photo, options)
                with running(name, python, folder, options.runtime) as server:
                    server.flood(photo, options.connections, 1)
                    found = len(server.flood(photo, options.connections, options.seconds)) / options.seconds
                    megabytes[name] = memory(server.process.pid) / 1e6
                shares[name].append(2 * found / (before + _limit(folder, photo, options)))
                print(f"  {name}: {shares[name][-1]:.2f} of bare", flush=True)
    for name in options.names:
        found, of = statistics.median(shares[name]), ", ".join(f"{one:.2f}" for one in shares[name])
        print(f"{name:9} {found:.2f} of bare ({of}), {costs[name]:.2f} CPU-ms, {megabytes[name]:.0f} MB")


def _limit(folder: Path, photo: bytes, options: argparse.Namespace) -> float:
    """Images a second of the bare loop."""
    seconds = options.seconds / 2
    return sum(map(len, bare_times(folder, options.runtime, photo, seconds, WORKERS))) / seconds


if __name__ == "__main__":
    main()
