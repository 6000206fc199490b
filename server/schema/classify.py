"""Pydantic models of the classify route and the status routes: queries, bodies and responses."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from server.ipc.messages import ModelInfo, Prediction, Row
from server.schema.base64_image import decode_base64

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
_FAULT = {"status": 400, "detail": "the 12 bytes are not an image of a known type; send JPEG, PNG or WebP"}


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [value]})


def _decode_image(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("should be a string: an image in base64")
    return decode_base64(text)


class Encoded(BaseModel):
    """A JSON body with images."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"images": ["/9j/4AAQ"]}]}
    )

    images: list[Annotated[bytes, BeforeValidator(_decode_image)]] = Field(
        min_length=1,
        description="Encoded images (JPEG, PNG, ...), each in base64 or as a data URL.",
        json_schema_extra={"items": {"type": "string", "format": "byte"}},
    )


class Query(BaseModel):
    """The query parameters of the classify route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("", description='Name of the model; "" for the first model.')
    version: str = Field("", description='Version of the model; "" for the last one.')

    top_k: int = Field(5, ge=1, description="Maximum number of classes to list, most probable first.")
    head: Literal[HeadName, "all"] = Field(
        "joint", description='The head to use. "joint" fuses both heads; "all" also lists each head.'
    )
    fusion: FusionName | None = Field(
        None, description="How to fuse the heads; null for the model's default. Not allowed with one head."
    )


@with_config(_example(_SCORES[0]))
class Score(TypedDict):
    """One class and its probability."""

    label: str
    index: int
    probability: float


@with_config(_example(_VERDICT))
class Verdict(Score):
    """The prediction of one head: the most probable class, and the top k classes."""

    top_k: list[Score]


@with_config(_example(_ANSWER))
class Answer(Verdict):
    """The prediction for one image by the requested head; with head=all, also by each head."""

    heads: Annotated[
        dict[HeadName, Verdict], Field(description="With head=all, the prediction of each head; otherwise empty.")
    ]
    agree: Annotated[
        bool | None,
        Field(description="Whether both heads predict the same class; null if the model has one head."),
    ]
    queued_ms: Annotated[
        float, Field(description="Milliseconds in the queue, before a worker started on the image.")
    ]
    compute_ms: Annotated[float, Field(description="Milliseconds to decode and classify the image's batch.")]


@with_config(_example(_FAULT))
class Fault(TypedDict):
    """The error for one of several images."""

    status: Annotated[
        int, Field(description="The HTTP status that the same image would get in a request of its own.")
    ]
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
    """The response of the classify route: one entry per image, in the order of the request."""

    model: str
    version: str
    head: Literal[HeadName, "all"]
    fusion: Annotated[
        FusionName | None, Field(description="How the heads were fused; null if one head was requested.")
    ]
    images: list[Answer | Fault]


class ModelCard(BaseModel):
    """A served model."""

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
    network: str = Field(description="timm's name of the architecture.")
    runtime: str
    device: str
    difference: float = Field(
        description="Largest difference of a probability from torch float32, on the bundle's check images."
    )
    classes: tuple[str, ...]
    size: int = Field(description="Side of the network's square input, in pixels.")
    heads: tuple[str, ...]
    fusion: str
    accuracy: dict[str, float] = Field(description="Top-1 accuracy by head on the validation images, in percent.")
    sha256: str = Field(description="SHA-256 of the weights.")


class Status(BaseModel):
    """The response of /healthz: the server is running."""

    model_config = _example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The response of /readyz: whether the server is ready, and if not, why."""

    model_config = _example({"status": "ok", "workers": 2, "of": 2, "problems": []})

    status: Literal["ok", "not ready"]
    workers: int = Field(description="Number of workers that are ready.")
    of: int = Field(description="Number of workers that are configured.")
    problems: list[str]


class Problem(BaseModel):
    """An error, in one line."""

    model_config = _example({"detail": "top_k: Input should be greater than or equal to 1"})

    detail: str


def build_answer(prediction: Prediction, info: ModelInfo, query: Query) -> Answer:
    """The response entry for one image: the heads that `query` requests, and the times in ms."""
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
    """The `count` most probable classes, or all C if there are fewer. probabilities: (C,) float32.

    Classes of equal probability are in the order of their index.
    """
    scores: list[Score] = [
        {"label": classes[index], "index": index, "probability": float(probabilities[index])}
        for index in _top_indices(probabilities, count)
    ]
    return {**scores[0], "top_k": scores}


def _top_indices(probabilities: Row, count: int) -> list[int]:
    """Indices of the largest values, equal ones by index. For a few, repeated argmax is faster than a sort."""
    if count > _ARGMAX_LIMIT:
        return [int(index) for index in np.argsort(-probabilities, kind="stable")[:count]]
    remaining, indices = probabilities.copy(), list[int]()
    for _ in range(min(count, len(remaining))):
        indices.append(int(remaining.argmax()))
        remaining[indices[-1]] = -1
    return indices
