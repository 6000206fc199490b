"""OpenAPI descriptions of the responses: errors, metrics, and raw request bodies."""

from typing import Any

from server.schema.classify import IMAGE_FIELD, Encoded, Problem

_BYTES = {"type": "string", "format": "binary"}
IMAGE_BODY = {
    "required": True,
    "description": "One image as raw bytes (its type is detected), or images in a form, or as base64 in JSON.",
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
    400: "No image, data that is not an image, or malformed JSON",
    401: "Missing or unknown API key",
    404: "Unknown model or version",
    413: "The body is too large, or an image has too many pixels",
    415: "Unsupported image type",
    422: "Invalid query, form or JSON",
    429: "Rate limit of the API key exceeded",
    500: "The network's output is NaN or infinite, or an internal error",
    503: "The queue is full, or a worker process exited; retry after Retry-After seconds",
    504: "The deadline passed before a worker was free",
}
METRICS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route with these error statuses."""
    return {status: {"model": Problem, "description": ERROR_DESCRIPTIONS[status]} for status in statuses}
