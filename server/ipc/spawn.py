"""Messages between the serving process, the forkserver and the model hosts."""

from dataclasses import dataclass

MESSAGE_BYTES = 65_536
BUNDLE_OPEN = b"\0"
"""What a holder says of a bundle that it could read; of another it says what is wrong."""
FIRST, NEXT = b"first", b"next"
"""What a holder is told with a worker's socket: the first worker checks the runtime, the others need not."""


@dataclass(frozen=True)
class HostSpec:
    """Which bundle to open, and how. card: the digest of a card that it must have; "" takes any."""

    folder: str
    name: str
    version: str
    device: str
    runtime: str
    batch: int
    max_pixels: int
    card: str = ""
