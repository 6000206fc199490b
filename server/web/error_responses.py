"""Errors as HTTP answers: what was raised becomes a status and one line. Only here are they worded."""

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
from server.schema.explain import EXPLAIN, ExplainQuery
from teacher_cache.errors import LimbeckError, validation_reason

EXPECTED = (RequestValidationError, HTTPException, LimbeckError, ClientDisconnect)
"""Of anything else that is raised the log is to have the whole story."""
_FAILED = "the server failed; its log says why"
_MOST_LETTERS = 1000
"""Of what was wrong: it may repeat what the client sent, and is kept."""


def error_response(path: str, status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as its readers expect it: {"error"} in the Open Inference Protocol, {"detail"} elsewhere."""
    name = "error" if path.startswith("/v2") else "detail"
    return _error_body(name, status, detail[:_MOST_LETTERS], tuple((headers or {}).items()))


@lru_cache(maxsize=256)  # a server that refuses must not spend on it what it lacks; most refusals are the same
def _error_body(name: str, status: int, detail: str, headers: tuple[tuple[str, str], ...]) -> JSONResponse:
    return JSONResponse({name: " ".join(detail.split())}, status, dict(headers))


def response_for(path: str, error: Exception) -> JSONResponse:
    """What a request that raised is answered with."""
    if isinstance(error, RequestValidationError):
        return error_response(path, 422, "; ".join(_line(path, part) for part in error.errors()))
    if isinstance(error, HTTPException):
        return error_response(path, error.status_code, str(error.detail), error.headers)
    if isinstance(error, ClientDisconnectedError | ClientDisconnect):
        return error_response(path, 499, "the client went away")  # nobody reads it, but the log stays clean
    if isinstance(error, LimbeckError):
        return error_response(path, status_of(error), str(error), headers_of(error))
    return error_response(path, 500, _FAILED)


def add_errors(app: FastAPI) -> None:
    """Have FastAPI's routes answer so."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        path = request.url.path
        if isinstance(error, HTTPException) and error.detail == HTTPStatus(error.status_code).phrase:
            return error_response(path, error.status_code, _unrouted(request.method, error), error.headers)
        return response_for(path, error)

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, answer)


def _unrouted(method: str, error: HTTPException) -> str:
    """What a request is told that fits no route; Starlette would only name the status."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{method} is not answered here; use {(error.headers or {}).get('Allow', 'another method')}"
    return "there is no such path; /openapi.json lists those there are"


def _line(path: str, part: dict[str, Any]) -> str:
    if part["type"] == "extra_forbidden":
        query = ExplainQuery if path == EXPLAIN else Query
        return f"{part['loc'][-1]}: unknown; the query may have {', '.join(query.model_fields)}"
    found = part.get("input")
    given = f", not {found[:40]!r}" if isinstance(found, str) else ""
    return f"{part['loc'][-1]}: {validation_reason(part['msg'])}{given}"
