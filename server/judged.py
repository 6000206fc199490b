"""What passes between the serving process and the model workers. Nothing here needs torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Row = NDArray[np.float32]


@dataclass(frozen=True)
class Facts:
    """What is known of a model that is served: its bundle's card, and its name and version here."""

    name: str
    version: str
    network: str
    """timm's name."""
    classes: tuple[str, ...]
    heads: tuple[str, ...]
    fusion: str
    size: int
    """Pixels on each side of what the network sees."""
    accuracy: dict[str, float]
    sha256: str
    runtime: str
    device: str
    difference: float
    """The largest of a probability from torch float32's, on the bundle's check images; 0 for torch itself."""
    batch: int
    """Images that go through the network at once, at most."""


@dataclass(frozen=True)
class Begun:
    """A worker's first message: it is ready. pid: its process."""

    pid: int
    facts: Facts


@dataclass(frozen=True)
class Task:
    """One image to work on. image: encoded bytes, or (S, S, 3) uint8 pixels already prepared.

    kind: a name in server.worker.TASKS; "judge" is the classifier. fusion: by name; "" is the card's.
    """

    image: bytes | Pixels
    fusion: str = ""
    kind: str = "judge"


@dataclass(frozen=True)
class Judged:
    """What the two heads say of one image. rows: (5, C) float32."""

    rows: NDArray[np.float32]
    queued_ms: float = 0.0
    compute_ms: float = 0.0

    @property
    def class_logits(self) -> Row:
        return self._row(0)

    @property
    def distill_logits(self) -> Row:
        return self._row(1)

    @property
    def class_(self) -> Row:
        """Probabilities, as are `distill` and `joint`."""
        return self._row(2)

    @property
    def distill(self) -> Row:
        return self._row(3)

    @property
    def joint(self) -> Row:
        return self._row(4)

    def _row(self, place: int) -> Row:
        row: Row = self.rows[place]
        return row


@dataclass(frozen=True)
class Done:
    """What became of one task: a Judged, another task's value, or an exception that is this image's alone."""

    value: Any
    compute_ms: float
