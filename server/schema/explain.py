"""Pydantic models of the explain route: its query and its JSON response."""

from base64 import b64encode
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from server.ipc.messages import Maps, MethodName, ModelInfo

EXPLAIN_PATH = "/v1/explain"
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
    def from_maps(cls, maps: Maps, info: ModelInfo, method: MethodName) -> Self:
        """As JSON can carry it."""
        tokens: Any = {
            name: TokenAttention(png=_to_base64(token.png), peak=token.peak, half=token.half)
            for name, token in maps.tokens.items()
        }
        return cls(model=info.name, version=info.version, method=method, seen=_to_base64(maps.seen), tokens=tokens)


def _to_base64(data: bytes) -> str:
    return b64encode(data).decode()
