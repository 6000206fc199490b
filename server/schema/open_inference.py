"""Pydantic models and OpenAPI schemas of the Open Inference Protocol routes."""

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
    """An empty object; the HTTP status has all the information."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [{}]})


class ServerMetadata(BaseModel):
    """Name, version and protocol extensions of the server."""

    model_config = _example({"name": "limbeck", "version": "0.1.0", "extensions": ["binary_tensor_data"]})

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, datatype and shape of a tensor; -1 stands for the number of images."""

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
    inputs: list[TensorMetadata] = Field(description="A request has one of these.")
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    """The state of one version of a model."""

    model_config = _example(_ENTRY)

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Index(RootModel[list[IndexEntry]]):
    """All models of the repository, loaded or not."""

    model_config = _example([_ENTRY])


class ProtocolProblem(BaseModel):
    """An error, in one line."""

    model_config = _example({"error": "input 'image': an element's length reaches past the tensor's end"})

    error: str


_ERROR_DESCRIPTIONS = {
    400: "The request violates the protocol, or an input is not an image",
    401: "Missing or unknown API key",
    403: "This client may not load or unload models",
    404: "Unknown model or version",
    413: "The body is too large, or an image has too many pixels",
    415: "Unsupported content encoding or image type",
    429: "Rate limit of the API key exceeded",
    500: "The network's output is NaN or infinite, or an internal error",
    503: "Not ready, or the queue is full; retry after Retry-After seconds",
    504: "The deadline passed before a worker was free",
}


def protocol_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route with these error statuses."""
    return {status: {"model": ProtocolProblem, "description": _ERROR_DESCRIPTIONS[status]} for status in statuses}


_PARAMETERS = {"type": "object", "description": "binary_data_size, binary_data, classification, timeout, ..."}
_REQUEST_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Returned in the response."},
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
    """OpenAPI of the inference routes: header, request body and response, which FastAPI cannot derive."""
    return {
        "parameters": [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "required": False,
                "description": "Length of the JSON part in bytes, if binary tensors follow it.",
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "description": "JSON, followed by the bytes of the binary tensors in the order of the inputs.",
            "content": {
                "application/json": {"schema": _REQUEST_SCHEMA, "example": _REQUEST_EXAMPLE},
                "application/octet-stream": _BINARY,
            },
        },
        "responses": {
            "200": {
                "description": "JSON, followed by the bytes of the outputs requested as binary.",
                "content": {
                    "application/json": {"schema": _RESPONSE_SCHEMA, "example": _RESPONSE_EXAMPLE},
                    "application/octet-stream": _BINARY,
                },
            }
        },
    }


def repository_openapi() -> dict[str, Any]:
    """OpenAPI of the repository routes: an optional JSON body."""
    schema = {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}, "parameters": {"type": "object"}},
    }
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema, "example": {}}}}}
