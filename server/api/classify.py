"""POST /v1/classify, and a faster path for a request that is one raw image."""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Annotated, Any, cast
from urllib.parse import parse_qsl

import fastapi
import pydantic_core
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import BusyError, headers_of, status_of
from server.ipc.messages import ModelInfo, Prediction
from server.schema.classify import Answer, Answers, Fault, FusionName, Query, build_answer
from server.schema.mistakes import Carrier, explain_error
from server.serving.pool import Pool
from server.serving.registry import Registry
from server.settings import Settings
from server.web.body import (
    FORM,
    JSON,
    carrier_of,
    content_type_of,
    media_type,
    read_images,
    read_nonempty_body,
)
from server.web.connection import disconnect_check
from server.web.error_responses import EXPECTED, response_for
from teacher_cache.errors import ImageError, LimbeckError

PATH = "/v1/classify"
_ROUTE = SimpleNamespace(path=PATH)
"""Gives the path label of the metrics; FastAPI sets scope["route"] for other requests."""


class ClassifyRoute:
    """Classifies images that come as raw bytes, in a form or in JSON."""

    def __init__(self, models: Registry, settings: Settings) -> None:
        self._models, self._settings = models, settings

    def add_route(self, app: FastAPI, openapi: dict[str, Any]) -> None:
        """Add the route. openapi: the `responses` and `openapi_extra` of the OpenAPI document."""

        @app.post(PATH, name="classify", operation_id="classify", response_model=None, **openapi)
        async def classify(request: Request, query: Annotated[Query, fastapi.Query()]) -> Response:
            """Classify one or more images. With several, an invalid one gets an error entry."""
            self._find_model(query)
            images = await read_images(request, self._settings)
            model = self._find_model(query)  # again: the model may have been reloaded meanwhile
            carrier = carrier_of(content_type_of(request.scope))
            results = await _predict_each(
                model, images, query.fusion or "", carrier, disconnect_check(request.scope)
            )
            retry_headers = next((headers_of(one) for one in results if isinstance(one, BusyError)), {})
            return Response(_to_json(results, model.info, query), media_type=JSON, headers=retry_headers)

    async def classify_raw(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI application for one raw image: same response as the route, in a fifth of its time."""
        try:
            query = read_query(scope["query_string"])
            self._find_model(query)
            image = await read_nonempty_body(receive)
            model = self._find_model(query)  # again, as above
            carrier = carrier_of(content_type_of(scope))
            prediction = await _predict(model, image, query.fusion or "", carrier, disconnect_check(scope))
            body = _to_json([prediction], model.info, query)
        except Exception as error:
            await response_for(scope["path"], error)(scope, receive, send)
            if isinstance(error, EXPECTED):
                return
            raise
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", JSON.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _find_model(self, query: Query) -> Pool:
        """The model for a query. Raises, before the body is read, if it is unknown, unsuitable or overloaded."""
        model = self._models.get(query.model, query.version)
        _check_query(query, model.info)
        model.admit()
        return model


def fast_path(app: ASGIApp, classify: ClassifyRoute) -> ASGIApp:
    """Wrap the application so that raw images bypass FastAPI's routing, the slowest part of the request."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        is_classify = scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
        if is_classify and media_type(content_type_of(scope)) not in (FORM, JSON):
            scope["route"] = _ROUTE
            await classify.classify_raw(scope, receive, send)
            return
        await app(scope, receive, send)

    return route


@lru_cache(maxsize=64)
def read_query(query_string: bytes) -> Query:
    """Parse the query string as FastAPI does. Raises RequestValidationError."""
    try:
        return Query.model_validate(dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _check_query(query: Query, info: ModelInfo) -> None:
    """Raise HTTPException 422 for a head or fusion that this model does not have."""
    if "distill" not in info.heads:
        if query.head in ("distill", "all"):
            raise HTTPException(422, f"head={query.head}: this model has no distillation head; use head=class")
        if query.fusion not in (None, "class"):
            raise HTTPException(422, f"fusion={query.fusion}: this model has one head; remove fusion")
    if query.fusion and query.head in ("class", "distill"):
        raise HTTPException(422, f"fusion={query.fusion}: not possible with head={query.head}; use head=joint")


async def _predict(
    model: Pool, image: bytes, fusion: str, carrier: Carrier, is_disconnected: Callable[[], bool]
) -> Prediction:
    """The prediction of one image. The error of bytes that are not an image names the likeliest mistake."""
    try:
        return await model.predict(image, fusion, is_disconnected=is_disconnected)
    except ImageError as error:
        raise explain_error(error, image, carrier) from None


async def _predict_each(
    model: Pool, images: list[bytes], fusion: str, carrier: Carrier, is_disconnected: Callable[[], bool]
) -> list[Prediction | LimbeckError]:
    """The prediction or error of each image, in order.

    Raises the error of a single image, and BusyError if all of several images got one.
    """
    if len(images) == 1:
        return [await _predict(model, images[0], fusion, carrier, is_disconnected)]
    results = await asyncio.gather(
        *(_predict(model, image, fusion, carrier, is_disconnected) for image in images),
        return_exceptions=True,
    )
    for one in results:
        if isinstance(one, BaseException) and not isinstance(one, LimbeckError):
            raise one
    busy = [one for one in results if isinstance(one, BusyError)]
    if len(busy) == len(results):
        raise busy[0]
    return [one for one in results if isinstance(one, Prediction | LimbeckError)]


def _to_json(results: list[Prediction | LimbeckError], info: ModelInfo, query: Query) -> bytes:
    fusion = cast(FusionName, query.fusion or info.fusion)  # Card validates its fusion
    answers: Answers = {
        "model": info.name,
        "version": info.version,
        "head": query.head,
        "fusion": fusion if query.head in ("joint", "all") else None,
        "images": [_entry(one, info, query) for one in results],
    }
    return pydantic_core.to_json(answers)


def _entry(result: Prediction | LimbeckError, info: ModelInfo, query: Query) -> Answer | Fault:
    if isinstance(result, Prediction):
        return build_answer(result, info, query)
    return {"status": status_of(result), "detail": " ".join(str(result).split())}
