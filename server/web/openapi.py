"""The application whose OpenAPI document says what its routes answer, less what FastAPI claims of its own."""

from typing import Any

from fastapi import FastAPI

_UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


class OpenApiApp(FastAPI):
    """FastAPI gives every route with a parameter a 422 of its own: what our routes refuse, they document."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    if _UNUSED_SCHEMAS[0] in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            for name in _UNUSED_SCHEMAS:
                document["components"]["schemas"].pop(name, None)
        return super().openapi()
