"""What one server is told once, when it starts."""

import os
from dataclasses import dataclass, field
from pathlib import Path


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """The address and the limits of one server. Times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 picks a free one."""
    device: str = "auto"
    runtime: str = "torch"
    """What computes: a name in server.runtime.RUNTIMES."""
    workers: int = field(default_factory=cores)
    """Processes for each model; each decodes and judges with one thread."""
    batch: int = 0
    """Images that go through the network at once, at most; 0: 1 on a CPU, 16 on a GPU."""

    max_body_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    """Of one image."""
    max_images: int = 64
    """In one request."""
    max_waiting: int = 256
    """Images that wait for a worker, for each model; more are refused with 503."""
    max_held_bytes: int = 1_000_000_000
    """Of the bodies of all requests at once; more are refused with 503."""
    max_header_bytes: int = 65_536

    deadline: float = 10.0
    """How long an image may wait for a worker before it is given up with 504."""
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    """In which a request's header, and then its body, must have come in."""
    compute_seconds: float = 60.0
    """After which a worker that is still at one batch is killed."""
    shutdown_seconds: int = 30
    """How long requests in flight are waited for when the server is told to stop."""
    non_finite: int = 5
    """After so many answers in a row that are not finite, the server is no longer ready."""

    api_keys: Path | None = None
    """A file with one key a line; None: the environment's LIMBECK_API_KEYS, and without them all are served."""
    rate: float = 0.0
    """Requests a second for each key; 0 is no limit."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask."""
    access_log: str = ""
    """A file for one JSON line a request; "-" is standard output, "" is none."""
