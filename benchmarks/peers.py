"""The server beside LitServe and BentoML: the same network, the same decode and forward, by turns in one run.

python benchmarks/peers.py --venv /tmp/peers [--runtime torch] [--rounds 16] [--seconds 3] [--connections 32]

The peers are installed into a virtual environment of their own, which sees this one's packages. Each runs two
workers of one thread that call the very code of our own, takes the raw body, and has no batching and no access log
(LitServe: fast_queue, one API server). Printed for each: CPU-milliseconds a request of 70 kB where the workers
compute nothing; images a second as a share of the bare limit (decode and forward in a loop on all cores) and of
our own, the medians of many short turns, while the others stand still; and memory.
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
from serve import Bare, make_bundle, quartiles

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

    @contextmanager
    def alone(self) -> Iterator[None]:
        """It goes on for as long; before and after, all of it stands still."""
        for one in self.family():
            one.resume()
        yield
        for one in self.family():
            one.suspend()

    def flood(self, image: bytes, connections: int, seconds: float, warm: float = 0.0) -> list[float]:
        """Seconds of each answer."""
        return asyncio.run(flood("127.0.0.1", self.port, image, connections, seconds, warm))


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
            for one in family:
                one.resume()
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
    parser.add_argument("--names", nargs="*", default=PEERS, help="which peers")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    python, photo, heavy = make_venv(options.venv), make_photo(), make_photo(BODY_BYTES)
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    names = ["limbeck", *options.names]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = make_bundle(Path(temporary, "bundle"), {})
        for name in names:
            with running(name, python, None, options.runtime) as server:
                server.flood(heavy, options.connections, 1)
                before = sum(map(cpu_seconds, server.family()))
                count = len(server.flood(heavy, options.connections, options.seconds))
                cost = 1000 * (sum(map(cpu_seconds, server.family())) - before) / count
            with running(name, python, folder, options.runtime) as server:
                server.flood(photo, options.connections, 2)
                megabytes = memory(server.process.pid) / 1e6
            rate = count / options.seconds
            print(f"{name:9} {cost:.2f} CPU-ms a request, {rate:.0f} a second; {megabytes:.0f} MB", flush=True)
        servers: dict[str, Running] = {}
        for name in names:
            servers[name] = stack.enter_context(running(name, python, folder, options.runtime))
            with servers[name].alone():
                servers[name].flood(photo, options.connections, 2)
        bare = Bare(folder, options.runtime, photo, WORKERS)
        rates: dict[str, list[float]] = {name: [] for name in ("bare", *servers)}
        for number in range(options.rounds):
            rates["bare"].append(bare.rate(options.seconds))
            turns = deque(servers)
            turns.rotate(number)
            for name in turns:
                with servers[name].alone():
                    found = servers[name].flood(photo, options.connections, options.seconds, warm=0.5)
                rates[name].append(len(found) / options.seconds)
            told = ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items())
            print(f"  images a second: {told}", flush=True)
        for name in names:
            of_bare, of_ours = (
                quartiles([one / other for one, other in zip(rates[name], rates[base], strict=True)])
                for base in ("bare", "limbeck")
            )
            print(f"{name:9} {of_bare} of bare, {of_ours} of ours")


if __name__ == "__main__":
    main()
