"""Pydantic models of the explain route: its query and its JSON response."""

from base64 import b64encode
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from server.ipc.messages import Maps, MethodName, ModelInfo

EXPLAIN_PATH = "/v1/explain"
_PNG = "iVBORw0KGgo="
_TOKEN: Any = {"png": _PNG, "peak": [0.54, 0.39], "half": 0.12}


class ExplainQuery(BaseModel):
    """The query parameters of the explain route."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodName = Field(
        "last-layer",
        description="The last layer's attention averaged over its heads, or the attention rollout over all layers "
        "(Abnar and Zuidema, 2020).",
    )
    format: Literal["png", "json"] = Field(
        "png",
        description='"png" is one image: the network input and a map for each token. "json" has each separately.',
    )
    model: str = Field("", description="Name of the model; empty for the first one.")
    version: str = Field("", description="Version of the model; empty for the newest one.")


class TokenAttention(BaseModel):
    """The attention of one token over the patches of the image."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_TOKEN]})

    png: str = Field(description="PNG in base64: heat map over the image in gray.")
    peak: tuple[float, float] = Field(
        description="Center of the patch with the most attention: x from the left and y from the top, 0 to 1."
    )
    half: float = Field(
        description="Smallest fraction of the patches that together get half of the attention, 0 to 1."
    )


class Explanation(BaseModel):
    """The attention of each token over the network input: the center of the image, at the network's size."""

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
    seen: str = Field(description="PNG in base64: the network input.")
    tokens: dict[Literal["class", "distill"], TokenAttention] = Field(
        description="Attention by token; a model with one head has only the class token."
    )

    @classmethod
    def from_maps(cls, maps: Maps, info: ModelInfo, method: MethodName) -> Self:
        """Build the JSON response, with the PNGs in base64."""
        tokens: Any = {
            name: TokenAttention(png=_to_base64(token.png), peak=token.peak, half=token.half)
            for name, token in maps.tokens.items()
        }
        return cls(model=info.name, version=info.version, method=method, seen=_to_base64(maps.seen), tokens=tokens)


def _to_base64(data: bytes) -> str:
    return b64encode(data).decode()
