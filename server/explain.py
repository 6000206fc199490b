"""POST /v1/explain: where the class token and the distillation token look."""

from base64 import b64encode
from typing import Annotated, Any, Literal, Self

import fastapi
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from server.attended import Maps, MethodName
from server.body import read_images
from server.connection import gone_of
from server.judged import Facts, Task
from server.registry import Registry
from server.settings import Settings

EXPLAIN = "/v1/explain"
_PNG = "iVBORw0KGgo="
_TOKEN: Any = {"png": _PNG, "peak": [0.54, 0.39], "half": 0.12}


class ExplainQuery(BaseModel):
    """What to show."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodName = Field(
        "last-layer",
        description="The last layer's attention averaged over its heads, or the rollout of all layers' "
        "(Abnar and Zuidema, 2020).",
    )
    format: Literal["png", "json"] = Field(
        "png",
        description='"png" is one picture: what the network saw, and a map for each token. "json" has each.',
    )
    model: str = Field("", description="By name; empty is the server's first.")
    version: str = Field("", description="Of the model; empty is the newest.")


class TokenAttention(BaseModel):
    """Where one token looks."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_TOKEN]})

    png: str = Field(description="Base64 of a PNG: heat over the picture in grey.")
    peak: tuple[float, float] = Field(
        description="The middle of the patch most looked at, 0..1 from the left and the top."
    )
    half: float = Field(description="The smallest share of the patches that gets half of the attention, 0..1.")


class Explanation(BaseModel):
    """The attention of each token, of what the network saw: the middle of the image, at the network's size."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "deit_tiny_distilled_patch16_224",
                    "version": "9f86d081",
                    "method": "last-layer",
                    "seen": _PNG,
                    "tokens": {"class": _TOKEN, "distill": _TOKEN},
                }
            ]
        },
    )

    model: str
    version: str
    method: MethodName
    seen: str = Field(description="Base64 of a PNG: what the network saw.")
    tokens: dict[Literal["class", "distill"], TokenAttention] = Field(
        description="By token; a one-headed model has the class token alone."
    )

    @classmethod
    def of(cls, maps: Maps, facts: Facts, method: MethodName) -> Self:
        """As JSON can carry it."""
        tokens: Any = {
            name: TokenAttention(png=_base64(token.png), peak=token.peak, half=token.half)
            for name, token in maps.tokens.items()
        }
        return cls(model=facts.name, version=facts.version, method=method, seen=_base64(maps.seen), tokens=tokens)


def add_explain(app: FastAPI, models: Registry, settings: Settings, described: dict[str, Any]) -> None:
    """described: `responses` and `openapi_extra` of a route that takes images."""

    @app.post(
        EXPLAIN,
        response_model=Explanation,
        responses={
            200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
            **described["responses"],
        },
        openapi_extra=described["openapi_extra"],
    )
    async def explain(request: Request, query: Annotated[ExplainQuery, fastapi.Query()]) -> Response | Explanation:
        """Attention maps of both tokens for one image, computed by the torch network, whatever the runtime."""
        models.get(query.model, query.version).admit()  # before the body is read
        images = await read_images(request, settings)
        model = models.get(query.model, query.version)  # the bundle may have been read again since
        if len(images) > 1:
            raise HTTPException(422, f"{len(images)} images; send one to have it explained")
        maps: Maps = await model.ask(Task(images[0], kind=query.method), gone=gone_of(request.scope))
        if query.format == "png":
            return Response(maps.sheet, media_type="image/png")
        return Explanation.of(maps, model.facts, query.method)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
