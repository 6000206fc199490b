"""The OpenAPI document, less what FastAPI claims of its own."""

from typing import Any

from fastapi import FastAPI

_NEVER = ("HTTPValidationError", "ValidationError")


def tidy_document(app: FastAPI) -> None:
    """Take out the 422 that FastAPI gives every route with a parameter: what our routes refuse, they document."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = plain()
            for path in whole["paths"].values():
                for operation in path.values():
                    if _NEVER[0] in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            for name in _NEVER:
                whole["components"]["schemas"].pop(name, None)
        return plain()

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's manual has it
