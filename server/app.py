"""The HTTP API."""

import asyncio
import logging
from importlib.metadata import version
from typing import Annotated

import fastapi
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from server.body import FIELD, read_images
from server.predictor import ImageSizeError, Judged, Predictor
from server.schema import Answer, Answers, Fault, ModelCard, Problem, Query, Status
from server.settings import Settings
from student.bundle import Prediction
from teacher_cache.errors import ImageError
from teacher_cache.network import Card

_BYTES = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "description": "One image as it is (the type is told by its bytes), or one or more in a form.",
    "content": {
        "application/octet-stream": {"schema": _BYTES},
        "image/*": {"schema": _BYTES},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {FIELD: {"type": "array", "items": _BYTES}},
                "required": [FIELD],
            }
        },
    },
}
_FAILED = "the server failed; its log says why"

log = logging.getLogger("uvicorn.error")


def create_app(predictor: Predictor, settings: Settings) -> FastAPI:
    """The application around a predictor; whoever made the predictor closes it."""
    # FastAPI's documentation page would load its script from another site.
    app = FastAPI(title="limbeck", version=version("limbeck"), docs_url=None, redoc_url=None)
    _add_classify(app, predictor, settings)
    _add_facts(app, predictor)
    _add_errors(app)
    return app


def _add_classify(app: FastAPI, predictor: Predictor, settings: Settings) -> None:
    card = predictor.bundle.card

    @app.post(
        "/v1/classify",
        responses={
            400: {"model": Problem, "description": "No image, or bytes that are none"},
            413: {"model": Problem, "description": "A body too large, or an image of too many pixels"},
            422: {"model": Problem, "description": "A query that cannot be answered"},
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def classify(request: Request, query: Annotated[Query, fastapi.Query()]) -> Answers:
        """Classify one image, or several; of several, a bad one gets a fault and spoils no other's answer."""
        check_query(query, card)
        images = await read_images(request, settings)
        futures = [asyncio.wrap_future(predictor.submit(image, query.fusion or "")) for image in images]
        entries = [_entry(judged, card, query) for judged in await asyncio.gather(*futures)]
        if len(entries) == 1 and isinstance(entries[0], Fault):
            raise HTTPException(entries[0].status, entries[0].detail)
        fusion = (query.fusion or card.fusion) if query.head in ("joint", "all") else None
        return Answers.model_validate(
            {"model": card.network.name, "head": query.head, "fusion": fusion, "images": entries}
        )


def check_query(query: Query, card: Card) -> None:
    """Raises HTTPException 422 for what this model, or no model, can answer."""
    if "distill" not in card.heads:
        if query.head in ("distill", "all"):
            raise HTTPException(422, f"head={query.head}: this model has no distillation head; use head=class")
        if query.fusion not in (None, "class"):
            raise HTTPException(422, f"fusion={query.fusion}: this model has one head; leave fusion out")
    if query.fusion and query.head in ("class", "distill"):
        raise HTTPException(422, f"fusion={query.fusion}: head={query.head} is not fused; use head=joint")


def _entry(judged: Judged, card: Card, query: Query) -> Answer | Fault:
    outcome = judged.outcome
    if isinstance(outcome, Prediction):
        return Answer.of(judged, outcome, card, query)
    if isinstance(outcome, ImageError):
        status = 413 if isinstance(outcome, ImageSizeError) else 400
        return Fault(status=status, detail=" ".join(str(outcome).split()))
    log.error("an image could not be judged", exc_info=outcome)
    return Fault(status=500, detail=_FAILED)


def _add_facts(app: FastAPI, predictor: Predictor) -> None:
    card = predictor.bundle.card

    @app.get("/")
    async def root() -> dict[str, str]:
        """Where things are."""
        return {"classify": "POST /v1/classify", "model": "/v1/model", "openapi": "/openapi.json"}

    @app.get("/v1/model")
    async def model() -> ModelCard:
        """What answers here."""
        facts = card.model_dump(include={"classes", "heads", "fusion", "accuracy", "sha256"})
        return ModelCard(name=card.network.name, size=card.eval.size, **facts)

    @app.get("/healthz")
    async def healthz() -> Status:
        """The process lives; asks nothing of the model."""
        return Status()

    @app.get("/readyz")
    async def readyz() -> Status:
        """A blank image has just gone through the model."""
        await asyncio.wrap_future(predictor.probe())
        return Status()


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def bad_query(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [
            f"{problem['loc'][-1]}: unknown; the query may have {', '.join(Query.model_fields)}"
            if problem["type"] == "extra_forbidden"
            else f"{problem['loc'][-1]}: {problem['msg']}"
            for problem in error.errors()
        ]
        return JSONResponse({"detail": "; ".join(lines)}, 422)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"detail": "the client went away"}, 400)  # nobody reads it, but the log stays clean

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": _FAILED}, 500)
