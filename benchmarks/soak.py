"""Valid and invalid requests while workers are killed and bundles reloaded: lost requests, memory growth.

    python benchmarks/soak.py [--minutes 10] [--connections 16] [--kill-every 20] [--reload-every 15]

Runs `limbeck serve` with one small model on two workers. Half of the requests are valid images of all types. The
rest are invalid data, truncated images, forms, JSON, other routes, and clients that disconnect early. Workers are
killed with SIGKILL, and the bundle is replaced and reloaded (SIGHUP). Prints one JSON line. The exit status is 1
unless:

- a valid image gets 200, an invalid one its 4xx, and no connection breaks;
- 503 occurs only if a worker was killed, for at most one batch (one image) per kill;
- the memory of all processes grows by less than --slope MB per minute over the last three quarters (least
  squares);
- the server exits with status 0 and leaves no process.
"""

import argparse
import asyncio
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from flood import make_photo
from fuzz import make_images, memory
from serve import SMALL, make_bundle

MEASURE_SECONDS = 1.0
READY_SECONDS = 10
Case = tuple[str, frozenset[int], dict[str, Any]]
"""Kind of request, its allowed statuses, and the arguments of httpx's `request`."""


@dataclass
class Tally:
    """Results of the run."""

    replies: Counter[str] = field(default_factory=Counter)
    """Number of responses by kind of request and status."""
    errors: list[str] = field(default_factory=list)
    kills: int = 0
    reloads: int = 0
    versions: set[str] = field(default_factory=set)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, and megabytes (PSS) of all processes."""

    lost: int = 0
    """Images that were lost with a killed worker."""

    def slope(self) -> float:
        """Growth in megabytes per minute over the last three quarters, by least squares."""
        samples = np.array(self.memory[len(self.memory) // 4 :])
        return float(60 * np.polyfit(samples[:, 0], samples[:, 1], 1)[0])


def make_cases(model: str) -> list[Case]:
    """The requests to send, in order."""
    good = [make_photo(), *make_images()]
    encoded = json.dumps({"images": [b64encode(image).decode() for image in good[:3]]}).encode()
    url, ok = "/v1/classify", frozenset({200})
    cases: list[Case] = [("good", ok, {"method": "POST", "url": url, "content": image}) for image in good]
    cases += [("good form", ok, {"method": "POST", "url": url, "files": {"image": image}}) for image in good[:4]]
    cases.append(
        (
            "json",
            ok,
            {"method": "POST", "url": url, "content": encoded, "headers": {"content-type": "application/json"}},
        )
    )
    refused = frozenset({400, 413, 415, 422})
    for bad in (b"", b"rubbish", good[0][:300], good[-1][:90], b"%PDF-1.7\n", b"<svg xmlns='x'/>"):
        cases += [("bad", refused, {"method": "POST", "url": url, "content": bad})] * 2
    broken = {"content-type": "application/json"}
    cases.append(("bad", refused, {"method": "POST", "url": url, "content": b'{"images": [', "headers": broken}))
    cases.append(("bad", refused, {"method": "POST", "url": f"{url}?top_k=-1", "content": good[0]}))
    cases.append(("bad", frozenset({404}), {"method": "POST", "url": f"{url}?model=none", "content": good[0]}))
    cases.append(("bad", frozenset({404}), {"method": "GET", "url": "/nowhere"}))
    infer = {"method": "POST", "url": f"/v2/models/{model}/infer", "content": good[0]}
    for headers in ({}, {"Inference-Header-Content-Length": "7"}, {"Inference-Header-Content-Length": "99999999"}):
        cases.append(("bad", refused, infer | {"headers": headers}))
    cases.append(("explain", ok, {"method": "POST", "url": "/v1/explain", "content": good[0]}))
    cases.append(("probe", frozenset({200, 503}), {"method": "GET", "url": "/readyz"}))
    cases.append(("probe", ok, {"method": "GET", "url": "/metrics"}))
    return cases


async def send_requests(
    client: httpx.AsyncClient, cases: "itertools.cycle[Case]", tally: Tally, until: float
) -> None:
    """Send requests over one connection until `until`."""
    while time.monotonic() < until:
        kind, allowed, arguments = next(cases)
        try:
            reply = await client.request(**arguments)
        except httpx.HTTPError as error:
            tally.replies[f"{kind} {type(error).__name__}"] += 1
            tally.errors.append(f"{kind}: {error!r}")
            continue
        tally.replies[f"{kind} {reply.status_code}"] += 1
        killed = reply.status_code == 503 and "worker" in reply.text
        tally.lost += killed
        if reply.status_code not in allowed and not killed:
            tally.errors.append(f"{kind}: {reply.status_code} {reply.text[:200]}")
        if reply.status_code == 200 and kind == "json":
            faults = [one["detail"] for one in reply.json()["images"] if "detail" in one]
            tally.replies["in json 503"] += len(faults)
            tally.lost += len(faults)
            tally.errors += [f"json: {detail}" for detail in faults if "worker" not in detail]
        if reply.status_code == 200 and kind == "good":
            tally.versions.add(reply.json()["version"])


async def disconnect_clients(host: str, port: int, until: float) -> None:
    """Clients that disconnect within their body or before the response."""
    photo = make_photo()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n\r\n".encode()
    for part in itertools.cycle((len(photo) // 2, len(photo))):
        if time.monotonic() > until:
            break
        _, writer = await asyncio.open_connection(host, port)
        writer.write(head + photo[:part])
        with suppress(ConnectionError):
            await writer.drain()
        writer.transport.abort()
        await asyncio.sleep(0.05)


async def kill_workers(server: psutil.Process, every: float, tally: Tally, until: float) -> None:
    """Kill one worker every `every` seconds, as the kernel does if memory runs out."""
    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        with suppress(psutil.NoSuchProcess):  # the process has just exited
            workers = [child for child in server.children(recursive=True) if not child.children()]
            if workers:
                workers[tally.kills % len(workers)].kill()
                tally.kills += 1


async def reload_bundles(
    server: psutil.Process, folder: Path, others: list[Path], every: float, tally: Tally, until: float
) -> None:
    """Replace the bundle and reload it every `every` seconds."""
    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        fresh = folder.with_name("fresh")
        shutil.copytree(others[tally.reloads % 2], fresh)
        shutil.rmtree(folder)
        fresh.rename(folder)
        server.send_signal(signal.SIGHUP)
        tally.reloads += 1


async def measure_memory(server: psutil.Process, tally: Tally, started: float, until: float) -> None:
    """Sample the memory every MEASURE_SECONDS; skip a sample if a process exits meanwhile."""
    while time.monotonic() < until:
        with suppress(psutil.NoSuchProcess):
            tally.memory.append((time.monotonic() - started, memory(server.pid) / 1e6))
        await asyncio.sleep(MEASURE_SECONDS)


@asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    """Run a server; yields its process and URL. Raises SystemExit unless it exits with 0 and leaves no process."""
    command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found
        server = psutil.Process(process.pid)
        try:
            yield server, found[0]
        finally:
            processes = server.children(recursive=True)
            process.terminate()
            process.communicate()
        if process.returncode or any(one.is_running() for one in processes):
            raise SystemExit(f"the server exited with status {process.returncode}; processes: {processes}")


async def soak(options: argparse.Namespace) -> Tally:
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        folder, *others = (make_bundle(Path(temporary, name), SMALL) for name in ("served", "one", "other"))
        async with running_server(folder) as (server, url), httpx.AsyncClient(base_url=url, timeout=60) as client:
            cases = make_cases((await client.get("/v1/model")).raise_for_status().json()["name"])
            started = time.monotonic()
            until, turns = started + 60 * options.minutes, itertools.cycle(cases)
            await asyncio.gather(
                *(send_requests(client, turns, tally, until) for _ in range(options.connections)),
                disconnect_clients(client.base_url.host, client.base_url.port or 0, until),
                kill_workers(server, options.kill_every, tally, until),
                reload_bundles(server, folder, others, options.reload_every, tally, until),
                measure_memory(server, tally, started, until),
            )
            while (ready := (await client.get("/readyz")).json())["workers"] < ready["of"]:
                assert time.monotonic() < until + READY_SECONDS, (
                    f"not all workers are ready after {READY_SECONDS} s"
                )
                await asyncio.sleep(0.1)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--kill-every", type=float, default=20, help="seconds")
    parser.add_argument("--reload-every", type=float, default=15, help="seconds")
    parser.add_argument("--slope", type=float, default=2, help="maximum memory growth, megabytes per minute")
    options = parser.parse_args()
    tally = asyncio.run(soak(options))
    passed = not tally.errors and tally.lost <= tally.kills and tally.slope() < options.slope
    line = {
        "kept": passed,
        "requests": sum(tally.replies.values()),
        "lost_with_a_worker": tally.lost,
        "kills": tally.kills,
        "reloads": tally.reloads,
        "versions": len(tally.versions),
        "memory_mb": [round(megabytes) for _, megabytes in tally.memory[:: max(1, len(tally.memory) // 12)]],
        "mb_a_minute": round(tally.slope(), 2),
        "replies": dict(sorted(tally.replies.items())),
        "wrong": tally.errors[:10],
    }
    print(json.dumps(line))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
