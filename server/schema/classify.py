"""What the HTTP API takes and answers; the OpenAPI document is made from these."""

import binascii
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from server.ipc.messages import ModelInfo, Prediction, Row

IMAGE_FIELD = "image"

HeadName = Literal["joint", "class", "distill"]
FusionName = Literal["softmax-sum", "logit-mean", "class", "distill"]

_ARGMAX_LIMIT = 10
_SCORES = [
    {"label": "tench", "index": 0, "probability": 0.91},
    {"label": "goldfish", "index": 1, "probability": 0.07},
]
_VERDICT = {**_SCORES[0], "top_k": _SCORES}
_ANSWER = {**_VERDICT, "heads": {}, "agree": True, "queued_ms": 0.2, "compute_ms": 31.5}
_FAULT = {"status": 400, "detail": "not an image of a known type (12 bytes); send JPEG, PNG or WebP"}


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [value]})


def _decode_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("should be a string, an image in base64")
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError("should be base64, without a prefix") from None


class Encoded(BaseModel):
    """Images in JSON."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"images": ["/9j/4AAQ"]}]}
    )

    images: list[Annotated[bytes, BeforeValidator(_decode_base64)]] = Field(
        min_length=1,
        description="Each in base64.",
        json_schema_extra={"items": {"type": "string", "format": "byte"}},
    )


class Query(BaseModel):
    """How to answer, and which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("", description='A model by name; "" is the first.')
    version: str = Field("", description='One of its versions; "" is the last.')

    top_k: int = Field(5, ge=1, description="How many classes to list, at most, the likeliest first.")
    head: Literal[HeadName, "all"] = Field(
        "joint", description='Which head answers; "joint" is both, fused. "all" also lists each.'
    )
    fusion: FusionName | None = Field(
        None, description="How the heads are fused; null is the model's own way. Not for one head alone."
    )


@with_config(_example(_SCORES[0]))
class Score(TypedDict):
    """One class and its probability."""

    label: str
    index: int
    probability: float


@with_config(_example(_VERDICT))
class Verdict(Score):
    """What one head says: the likeliest class, and the likeliest few."""

    top_k: list[Score]


@with_config(_example(_ANSWER))
class Answer(Verdict):
    """What is said of one image: the verdict of the head asked for, and each head's with head=all."""

    heads: Annotated[dict[HeadName, Verdict], Field(description="Each head's verdict with head=all, else empty.")]
    agree: Annotated[
        bool | None, Field(description="Whether both heads name the same class; null for a one-headed model.")
    ]
    queued_ms: Annotated[float, Field(description="Milliseconds spent waiting for a worker.")]
    compute_ms: Annotated[float, Field(description="Milliseconds that its batch took to decode and judge.")]


@with_config(_example(_FAULT))
class Fault(TypedDict):
    """Why one image of several has no answer."""

    status: Annotated[int, Field(description="What the HTTP status would be, had the image come alone.")]
    detail: str


@with_config(
    _example(
        {
            "model": "deit_tiny_distilled_patch16_224",
            "version": "9f86d081",
            "head": "joint",
            "fusion": "softmax-sum",
            "images": [_ANSWER, _FAULT],
        }
    )
)
class Answers(TypedDict):
    """One entry for each image, in their order."""

    model: str
    version: str
    head: Literal[HeadName, "all"]
    fusion: Annotated[
        FusionName | None, Field(description="How the heads were fused; null where only one was asked.")
    ]
    images: list[Answer | Fault]


class ModelCard(BaseModel):
    """The model that answers here."""

    model_config = _example(
        {
            "name": "flowers",
            "version": "9f86d081",
            "network": "deit_tiny_distilled_patch16_224",
            "runtime": "torch",
            "device": "cpu",
            "difference": 0.0,
            "classes": ["tench", "goldfish"],
            "size": 224,
            "heads": ["class", "distill"],
            "fusion": "softmax-sum",
            "accuracy": {"class": 74.1, "distill": 74.4, "fused": 74.5},
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        }
    )

    name: str
    version: str
    network: str = Field(description="timm's name.")
    runtime: str
    device: str
    difference: float = Field(
        description="The largest of a probability from torch float32's, on the bundle's check images."
    )
    classes: tuple[str, ...]
    size: int = Field(description="Pixels on each side of the square that the network sees.")
    heads: tuple[str, ...]
    fusion: str
    accuracy: dict[str, float] = Field(description="Top-1 by head on the validation images, in percent.")
    sha256: str = Field(description="Of the weights.")


class Status(BaseModel):
    """The server lives (healthz)."""

    model_config = _example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the server answers (readyz), and if not, why."""

    model_config = _example({"status": "ok", "workers": 2, "of": 2, "problems": []})

    status: Literal["ok", "not ready"]
    workers: int = Field(description="That live and are ready.")
    of: int = Field(description="That there should be.")
    problems: list[str]


class Problem(BaseModel):
    """What was wrong with the request, in one line."""

    model_config = _example({"detail": "top_k: Input should be greater than or equal to 1"})

    detail: str


def build_answer(prediction: Prediction, info: ModelInfo, query: Query) -> Answer:
    """The answer to `query` about one image."""
    rows: dict[HeadName, Row] = {
        "joint": prediction.joint,
        "class": prediction.class_,
        "distill": prediction.distill,
    }
    verdicts = {
        name: build_verdict(row, info.classes, query.top_k)
        for name, row in rows.items()
        if query.head in (name, "all")
    }
    two_headed = "distill" in info.heads
    return {
        **verdicts["joint" if query.head == "all" else query.head],
        "heads": verdicts if query.head == "all" else {},
        "agree": bool(prediction.class_.argmax() == prediction.distill.argmax()) if two_headed else None,
        "queued_ms": round(prediction.queued_ms, 3),
        "compute_ms": round(prediction.compute_ms, 3),
    }


def build_verdict(probabilities: Row, classes: tuple[str, ...], count: int) -> Verdict:
    """probabilities: (C,). The likeliest `count` classes (fewer where C is); of equals the lower index first."""
    scores: list[Score] = [
        {"label": classes[index], "index": index, "probability": float(probabilities[index])}
        for index in _top_indices(probabilities, count)
    ]
    return {**scores[0], "top_k": scores}


def _top_indices(probabilities: Row, count: int) -> list[int]:
    """Indices, of equals the lower first; a few times argmax is done before a thousand are sorted."""
    if count > _ARGMAX_LIMIT:
        return [int(index) for index in np.argsort(-probabilities, kind="stable")[:count]]
    remaining, indices = probabilities.copy(), list[int]()
    for _ in range(min(count, len(remaining))):
        indices.append(int(remaining.argmax()))
        remaining[indices[-1]] = -1
    return indices
