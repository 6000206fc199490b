"""What one server is told once, when it starts."""

import os
from dataclasses import dataclass, field


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """The address and the limits of one server."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 picks a free one."""
    max_body_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    """Of one image."""
    max_images: int = 64
    """In one multipart request."""
    lanes: int = field(default_factory=cores)
    """Images worked on at once; each lane decodes and judges with one thread."""
    shutdown_seconds: int = 30
    """How long requests in flight are waited for when the server is told to stop."""
