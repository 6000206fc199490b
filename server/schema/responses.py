"""OpenAPI descriptions of the responses: errors, metrics, and raw request bodies."""

from typing import Any

from server.schema.classify import IMAGE_FIELD, Encoded, Problem

_BYTES = {"type": "string", "format": "binary"}
IMAGE_BODY = {
    "required": True,
    "description": "One image as it is (its bytes tell the type), or one or more in a form, or as base64 in JSON.",
    "content": {
        "application/octet-stream": {"schema": _BYTES},
        "image/*": {"schema": _BYTES},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {IMAGE_FIELD: {"type": "array", "items": _BYTES}},
                "required": [IMAGE_FIELD],
            }
        },
        "application/json": {"schema": Encoded.model_json_schema()},
    },
}
ERROR_DESCRIPTIONS = {
    400: "No image, or bytes that are none; malformed JSON",
    401: "No key, or not one that is known",
    404: "No such model or version",
    413: "A body too large, or an image of too many pixels",
    415: "A type of image that is not taken",
    422: "A query, form or JSON that cannot be answered",
    429: "More requests a second than the key may ask",
    500: "The network's output is not finite, or the server failed over this image",
    503: "Too many wait, or a worker died; Retry-After says when to ask again",
    504: "No worker was free in time",
}
METRICS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": ERROR_DESCRIPTIONS[status]} for status in statuses}
