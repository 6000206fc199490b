"""What the Open Inference Protocol takes and answers, for the OpenAPI document and for what is not tensors."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

_TENSOR = {"name": "pixels", "datatype": "UINT8", "shape": [-1, 224, 224, 3]}
_METADATA = {
    "name": "flowers",
    "versions": ["9f86d081"],
    "platform": "limbeck_torch",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}, _TENSOR],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 102]}],
}
_ENTRY = {"name": "flowers", "version": "9f86d081", "state": "READY", "reason": ""}


def _example(value: Any) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [value]})


class Nothing(BaseModel):
    """An empty object: the status says all."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [{}]})


class ServerMetadata(BaseModel):
    """What this server is."""

    model_config = _example({"name": "limbeck", "version": "0.1.0", "extensions": ["binary_tensor_data"]})

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 is the number of images."""

    model_config = _example(_TENSOR)

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's versions and tensors."""

    model_config = _example(_METADATA)

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata] = Field(description="A request gives one of these.")
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    """One version of one model."""

    model_config = _example(_ENTRY)

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Index(RootModel[list[IndexEntry]]):
    """All models, served or not."""

    model_config = _example([_ENTRY])


class ProtocolProblem(BaseModel):
    """What was wrong with the request, in one line."""

    model_config = _example({"error": "input 'image': an element's length reaches past the tensor's end"})

    error: str


_ERROR_DESCRIPTIONS = {
    400: "Not as the protocol has it, or bytes that are no image",
    401: "No key, or not one that is known",
    403: "Loading and unloading is not open to this client",
    404: "No such model or version",
    413: "A body too large, or an image of too many pixels",
    415: "A content encoding, or a type of image, that is not taken",
    429: "More requests a second than the key may ask",
    500: "The network's output is not finite, or the server failed over this image",
    503: "Not ready, or too many wait; Retry-After says when to ask again",
    504: "No worker was free in time",
}


def protocol_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: what is said with each status."""
    return {status: {"model": ProtocolProblem, "description": _ERROR_DESCRIPTIONS[status]} for status in statuses}


_PARAMETERS = {"type": "object", "description": "binary_data_size, binary_data, classification, timeout, ..."}
_REQUEST_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Comes back with the answer."},
        "parameters": _PARAMETERS,
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"enum": ["image", "pixels"]},
                    "datatype": {"enum": ["BYTES", "UINT8"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "parameters": _PARAMETERS,
                    "data": {"type": "array", "items": {}},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}
_REQUEST_EXAMPLE = {
    "inputs": [
        {
            "name": "image",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"content_type": "base64"},
            "data": ["iVBORw0KGgo="],
        }
    ],
    "outputs": [{"name": "probabilities", "parameters": {"classification": 5}}],
}
_RESPONSE_EXAMPLE = {
    "model_name": "flowers",
    "model_version": "9f86d081",
    "outputs": [{"name": "probabilities", "datatype": "BYTES", "shape": [1, 1], "data": ["0.910000:0:tench"]}],
}
_RESPONSE_SCHEMA = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"enum": ["FP32", "BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "data": {"type": "array", "items": {}},
                },
            },
        },
    },
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def infer_openapi() -> dict[str, Any]:
    """What FastAPI cannot tell of the inference routes."""
    return {
        "parameters": [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "required": False,
                "description": "Bytes of JSON, where binary tensors follow it.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "description": "JSON; with binary tensors, JSON and then their bytes, in the order of the inputs.",
            "content": {
                "application/json": {"schema": _REQUEST_SCHEMA, "example": _REQUEST_EXAMPLE},
                "application/octet-stream": _BINARY,
            },
        },
        "responses": {
            "200": {
                "description": "The outputs; those asked for as binary follow the JSON.",
                "content": {
                    "application/json": {"schema": _RESPONSE_SCHEMA, "example": _RESPONSE_EXAMPLE},
                    "application/octet-stream": _BINARY,
                },
            }
        },
    }


def repository_openapi() -> dict[str, Any]:
    """The body that the repository's routes may be given."""
    schema = {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}, "parameters": {"type": "object"}},
    }
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema, "example": {}}}}}
