"""Messages between the serving process and the model workers. This module does not import torch."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MethodName = Literal["last-layer", "rollout"]

Pixels = NDArray[np.uint8]
Row = NDArray[np.float32]
_ROWS = 5
CLASSIFY = "classify"
"""The kind of task whose value is a Prediction."""


@dataclass(frozen=True)
class ModelInfo:
    """Properties of a served model, from its bundle's card and from its worker."""

    name: str
    version: str
    network: str
    """The name in timm."""
    classes: tuple[str, ...]
    heads: tuple[str, ...]
    fusion: str
    size: int
    """Height and width of the network's input, in pixels."""
    accuracy: dict[str, float]
    sha256: str
    """Digest of the weights."""
    card: str
    """Digest of the bundle's card, which contains the weights' sha256."""
    runtime: str
    device: str
    difference: float
    """Largest difference of a probability from torch float32 on the bundle's check images; 0 for torch itself."""
    batch: int
    """Maximum images per forward pass."""


@dataclass(frozen=True)
class WorkerReady:
    """A worker's first message if it has started. pid: its process ID."""

    pid: int
    info: ModelInfo


@dataclass(frozen=True)
class Task:
    """Work on one image. image: encoded bytes, or prepared (S, S, 3) uint8 pixels.

    fusion: "" is the bundle's. kind: CLASSIFY, or a key of server.workers.attention_maps.TASKS.
    """

    image: bytes | Pixels
    fusion: str = ""
    kind: str = CLASSIFY


class _Row:
    """Descriptor of one row of Prediction.rows."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, prediction: "Prediction", _: type) -> Row:
        row: Row = prediction.rows[self._index]
        return row


@dataclass(frozen=True)
class Prediction:
    """Outputs of both heads for one image.

    rows: (5, C) float32: class_logits, distill_logits, and the probabilities class_, distill and joint.
    queued_ms, compute_ms: time in the queue and in the worker's batch.
    """

    rows: NDArray[np.float32]
    queued_ms: float = 0.0
    compute_ms: float = 0.0

    class_logits, distill_logits = _Row(0), _Row(1)
    class_, distill, joint = _Row(2), _Row(3), _Row(4)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (
            self.rows.tobytes(),
            self.queued_ms,
            self.compute_ms,
        )  # twice as fast as an array's pickle


@dataclass(frozen=True)
class TaskResult:
    """Result of one task. value: a Prediction, another kind's value, or a LimbeckError. compute_ms: per batch."""

    value: Any
    compute_ms: float


def _unpickle(data: bytes, queued_ms: float, compute_ms: float) -> Prediction:
    return Prediction(np.frombuffer(data, np.float32).reshape(_ROWS, -1), queued_ms, compute_ms)


@dataclass(frozen=True)
class TokenMap:
    """Attention map of one token. png: heat map over the gray image.

    peak: (x, y) of the patch with the most attention, 0..1 from the left and the top. half: smallest fraction of
    the patches that has half of the attention, 0..1.
    """

    png: bytes
    peak: tuple[float, float]
    half: float


@dataclass(frozen=True)
class Maps:
    """Attention maps of one image.

    seen: PNG of the network's input. tokens: "class" and, with two heads, "distill". sheet: PNG of all of them.
    """

    seen: bytes
    tokens: dict[str, TokenMap]
    sheet: bytes
