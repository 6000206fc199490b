"""Turn exceptions into HTTP error responses with a status and one line of text."""

from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.errors import ClientDisconnectedError, headers_of, status_of
from server.schema.classify import Query
from server.schema.explain import EXPLAIN_PATH, ExplainQuery
from teacher_cache.errors import LimbeckError, validation_reason

EXPECTED = (RequestValidationError, HTTPException, LimbeckError, ClientDisconnect)
"""Exceptions with an error response of their own; any other one is logged with its traceback."""
_INTERNAL_ERROR = "internal server error; see the server's log"
_MAX_DETAIL_CHARS = 1000
"""Limit for the text of an error, which may repeat what the client sent."""


def error_response(path: str, status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error response: {"error": ...} under /v2 (Open Inference Protocol), {"detail": ...} elsewhere."""
    name = "error" if path.startswith("/v2") else "detail"
    return _error_body(name, status, detail[:_MAX_DETAIL_CHARS], tuple((headers or {}).items()))


@lru_cache(maxsize=256)  # an overloaded server sends the same few errors very often
def _error_body(name: str, status: int, detail: str, headers: tuple[tuple[str, str], ...]) -> JSONResponse:
    return JSONResponse({name: " ".join(detail.split())}, status, dict(headers))


def response_for(path: str, error: Exception) -> JSONResponse:
    """The error response for an exception."""
    if isinstance(error, RequestValidationError):
        return error_response(path, 422, "; ".join(_error_line(path, part) for part in error.errors()))
    if isinstance(error, HTTPException):
        return error_response(path, error.status_code, str(error.detail), error.headers)
    if isinstance(error, ClientDisconnectedError | ClientDisconnect):
        return error_response(
            path, 499, "the client disconnected"
        )  # not sent, but keeps the log free of tracebacks
    if isinstance(error, LimbeckError):
        return error_response(path, status_of(error), str(error), headers_of(error))
    return error_response(path, 500, _INTERNAL_ERROR)


def add_error_handlers(app: FastAPI) -> None:
    """Register the error responses with FastAPI."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        path = request.scope["path"]
        if isinstance(error, HTTPException) and error.detail == HTTPStatus(error.status_code).phrase:
            headers = dict(error.headers or {})
            if "Allow" in headers:
                headers["Allow"] = _with_head(headers["Allow"])
            detail = _routing_detail(request.method, error.status_code, headers)
            return error_response(path, error.status_code, detail, headers)
        return response_for(path, error)

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, answer)


def _with_head(allowed: str) -> str:
    """The allowed methods, with HEAD if GET is one: the middleware answers it."""
    methods = {one.strip() for one in allowed.split(",")}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def _routing_detail(method: str, status: int, headers: Mapping[str, str]) -> str:
    """The error text for a path or method without a route; Starlette's own is only the status phrase."""
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{method} is not allowed here; use {headers.get('Allow', 'another method')}"
    return "unknown path; /openapi.json lists all paths"


def _error_line(path: str, error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        query = ExplainQuery if path == EXPLAIN_PATH else Query
        return f"{error['loc'][-1]}: unknown parameter; valid are {', '.join(query.model_fields)}"
    value = error.get("input")
    given = f", not {value[:40]!r}" if isinstance(value, str) else ""
    return f"{error['loc'][-1]}: {validation_reason(error['msg'])}{given}"
