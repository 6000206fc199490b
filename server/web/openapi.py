"""A FastAPI application whose OpenAPI document has only the responses that our routes declare."""

from typing import Any

from fastapi import FastAPI

_UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


class OpenApiApp(FastAPI):
    """FastAPI without its automatic 422 responses: the routes declare all their error responses."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, built once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    if _UNUSED_SCHEMAS[0] in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            for name in _UNUSED_SCHEMAS:
                document["components"]["schemas"].pop(name, None)
        return super().openapi()
