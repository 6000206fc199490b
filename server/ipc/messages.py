"""What passes between the serving process and the model workers. Nothing here needs torch."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MethodName = Literal["last-layer", "rollout"]

Pixels = NDArray[np.uint8]
Row = NDArray[np.float32]
_ROWS = 5


@dataclass(frozen=True)
class ModelInfo:
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
    card: str
    """A digest of all that the bundle's card says, the weights' sha256 among it."""
    runtime: str
    device: str
    difference: float
    """The largest of a probability from torch float32's, on the bundle's check images; 0 for torch itself."""
    batch: int
    """Images that go through the network at once, at most."""


@dataclass(frozen=True)
class WorkerReady:
    """A worker's first message: it is ready. pid: its process."""

    pid: int
    facts: ModelInfo


@dataclass(frozen=True)
class Task:
    """One image to work on. image: encoded bytes, or (S, S, 3) uint8 pixels already prepared.

    kind: a name in server.workers.worker.TASKS; "judge" is the classifier. fusion: by name; "" is the card's.
    """

    image: bytes | Pixels
    fusion: str = ""
    kind: str = "judge"


class _Row:
    """One row of what was judged, by name."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, judged: "Prediction", _: type) -> Row:
        row: Row = judged.rows[self._place]
        return row


@dataclass(frozen=True)
class Prediction:
    """What the two heads say of one image. rows: (5, C) float32, two of logits and three of probabilities."""

    rows: NDArray[np.float32]
    queued_ms: float = 0.0
    compute_ms: float = 0.0

    class_logits, distill_logits = _Row(0), _Row(1)
    class_, distill, joint = _Row(2), _Row(3), _Row(4)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.rows.tobytes(), self.queued_ms, self.compute_ms)  # in half of an array's own time


@dataclass(frozen=True)
class TaskResult:
    """What became of one task: a Judged, another task's value, or an exception that is this image's alone."""

    value: Any
    compute_ms: float


def _unpacked(data: bytes, queued_ms: float, compute_ms: float) -> Prediction:
    return Prediction(np.frombuffer(data, np.float32).reshape(_ROWS, -1), queued_ms, compute_ms)


@dataclass(frozen=True)
class TokenMap:
    """Where one token looks. png: the heat over the picture in grey.

    peak: (x, y) of the patch most looked at, 0..1 from the left and the top. half: the smallest share of the
    patches that gets half of the attention, 0..1.
    """

    png: bytes
    peak: tuple[float, float]
    half: float


@dataclass(frozen=True)
class Maps:
    """seen: PNG of what the network saw. tokens: by "class" and, with two heads, "distill". sheet: PNG of all."""

    seen: bytes
    tokens: dict[str, TokenMap]
    sheet: bytes
