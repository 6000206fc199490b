"""POST /v1/classify: what becomes of its images, and the straight way there for an image sent as it is."""

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
from server.schema.classify import Answer, Answers, Fault, FusionName, Query, answer_of
from server.serving.pool import Pool
from server.serving.registry import Registry
from server.settings import Settings
from server.web.body import FORM, JSON, kind_of, read_images, read_one
from server.web.connection import disconnection_of
from server.web.error_responses import EXPECTED, response_for
from teacher_cache.errors import LimbeckError

PATH = "/v1/classify"
_ROUTE = SimpleNamespace(path=PATH)
"""What the counts go by; other requests have it from FastAPI."""


class Classify:
    """Answers for images, whichever way they came."""

    def __init__(self, models: Registry, settings: Settings) -> None:
        self._models, self._settings = models, settings

    def add_route(self, app: FastAPI, described: dict[str, Any]) -> None:
        """described: the route's responses and body, for the OpenAPI document."""

        @app.post(PATH, name="classify", operation_id="classify", response_model=None, **described)
        async def classify(request: Request, query: Annotated[Query, fastapi.Query()]) -> Response:
            """Classify one image, or several; of several, a bad one gets a fault and spoils no other's answer."""
            self._admit(query)
            images = await read_images(request, self._settings)
            model = self._admit(query)  # the bundle may have been read again since, and the old one be gone
            judged = await _predict_each(model, images, query.fusion or "", disconnection_of(request.scope))
            later = next((headers_of(one) for one in judged if isinstance(one, BusyError)), {})
            return Response(_answers(judged, model.info, query), media_type=JSON, headers=later)

    async def classify_raw(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One image as it is: what the route above would answer, for a fifth of its time."""
        try:
            query = read_query(scope["query_string"])
            self._admit(query)
            image = await read_one(receive)
            model = self._admit(query)  # as above
            judged = await model.predict(image, query.fusion or "", is_disconnected=disconnection_of(scope))
            body = _answers([judged], model.info, query)
        except Exception as error:
            await response_for(scope["path"], error)(scope, receive, send)
            if isinstance(error, EXPECTED):
                return
            raise
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", JSON.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _admit(self, query: Query) -> Pool:
        """The model to ask now. Raises what is to be said before the body is read."""
        model = self._models.get(query.model, query.version)
        _check(query, model.info)
        model.admit()
        return model


def fast_path(app: ASGIApp, classify: Classify) -> ASGIApp:
    """The application, but raw images to classify go by FastAPI's routing, which costs more than all else here."""

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
            if not kind or kind_of(kind.decode("latin-1")) not in (FORM, JSON):
                scope["route"] = _ROUTE
                await classify.classify_raw(scope, receive, send)
                return
        await app(scope, receive, send)

    return front


@lru_cache(maxsize=64)
def read_query(query_string: bytes) -> Query:
    """The query as FastAPI reads it. Raises RequestValidationError."""
    try:
        return Query.model_validate(dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _check(query: Query, facts: ModelInfo) -> None:
    """Raises HTTPException 422 for what this model, or no model, can answer."""
    if "distill" not in facts.heads:
        if query.head in ("distill", "all"):
            raise HTTPException(422, f"head={query.head}: this model has no distillation head; use head=class")
        if query.fusion not in (None, "class"):
            raise HTTPException(422, f"fusion={query.fusion}: this model has one head; leave fusion out")
    if query.fusion and query.head in ("class", "distill"):
        raise HTTPException(422, f"fusion={query.fusion}: head={query.head} is not fused; use head=joint")


async def _predict_each(
    model: Pool, images: list[bytes], fusion: str, is_disconnected: Callable[[], bool]
) -> list[Prediction | LimbeckError]:
    """What became of each image; in their order. Raises what one alone met, or for want of room all did."""
    if len(images) == 1:
        return [await model.predict(images[0], fusion, is_disconnected=is_disconnected)]
    found = await asyncio.gather(
        *(model.predict(image, fusion, is_disconnected=is_disconnected) for image in images),
        return_exceptions=True,
    )
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, LimbeckError):
            raise one
    busy = [one for one in found if isinstance(one, BusyError)]
    if len(busy) == len(found):
        raise busy[0]
    return [one for one in found if isinstance(one, Prediction | LimbeckError)]


def _answers(judged: list[Prediction | LimbeckError], facts: ModelInfo, query: Query) -> bytes:
    fusion = cast(FusionName, query.fusion or facts.fusion)  # a card's is one of them
    whole: Answers = {
        "model": facts.name,
        "version": facts.version,
        "head": query.head,
        "fusion": fusion if query.head in ("joint", "all") else None,
        "images": [_entry(one, facts, query) for one in judged],
    }
    return pydantic_core.to_json(whole)


def _entry(judged: Prediction | LimbeckError, facts: ModelInfo, query: Query) -> Answer | Fault:
    if isinstance(judged, Prediction):
        return answer_of(judged, facts, query)
    return {"status": status_of(judged), "detail": " ".join(str(judged).split())}
