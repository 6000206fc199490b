"""Messages that start processes: from the serving process to the forkserver and to the model hosts."""

from dataclasses import dataclass

MESSAGE_BYTES = 65_536
"""Maximum size of one of these messages."""
BUNDLE_OPEN = b"\0"
"""Start of a model host's first message if it opened the bundle; the type of its device follows ("cpu", "cuda").
Otherwise the message is the error text."""


@dataclass(frozen=True)
class HostSpec:
    """Bundle that a model host opens, and the options of its workers.

    card: digest that the bundle's card must have; "" accepts any. batch: maximum images per forward pass; 0 is the
    device's default.
    """

    folder: str
    name: str
    version: str
    device: str
    runtime: str
    batch: int
    max_pixels: int
    card: str = ""


@dataclass(frozen=True)
class WorkerSpec:
    """One worker to fork. check_runtime: whether it compares its runtime with the bundle's check images."""

    check_runtime: bool = False
