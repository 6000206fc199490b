"""The HTTP API: the routes of the classifier, its facts, and how errors are worded."""

import asyncio
import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import request_response

from server.body import FIELD, read_images
from server.connection import gone_of
from server.document import tidy_document
from server.explain import add_explain
from server.gate import Gate, problem
from server.inference_protocol import add_inference_protocol
from server.judged import Facts, Judged
from server.page import add_page
from server.pool import Pool, all_problems
from server.refusals import GoneError, headers_of, status_of
from server.registry import Registry
from server.schema import Answer, Answers, Encoded, Fault, ModelCard, Problem, Query, Readiness, Status
from server.settings import Settings
from teacher_cache.errors import LimbeckError

_BYTES = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "description": "One image as it is (its bytes tell the type), or one or more in a form, or as base64 in JSON.",
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
        "application/json": {"schema": Encoded.model_json_schema()},
    },
}
_REFUSALS = {
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
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_FAILED = "the server failed; its log says why"

log = logging.getLogger("uvicorn.error")


def create_app(models: Registry, settings: Settings, keys: list[bytes] | None = None) -> FastAPI:
    """The application around the models; whoever made them closes them. keys: digests of those that may ask."""
    # FastAPI's documentation page would load its script from another site.
    app = FastAPI(title="limbeck", version=version("limbeck"), docs_url=None, redoc_url=None)
    app.state.settings = settings
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Gate, settings=settings, metrics=models.metrics, keys=keys or [])
    _add_classify(app, models, settings)
    _add_facts(app, models, settings)
    add_explain(
        app, models, settings, {"responses": _refused(*_REFUSALS), "openapi_extra": {"requestBody": _BODY}}
    )
    add_inference_protocol(app, models, settings)
    add_page(app, settings)
    _add_errors(app)
    tidy_document(app)
    return app


def _refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _REFUSALS[status]} for status in statuses}


def _add_classify(app: FastAPI, models: Registry, settings: Settings) -> None:
    @app.post(
        "/v1/classify",
        name="classify",
        operation_id="classify",
        response_model=None,
        responses={200: {"model": Answers, "description": "One entry for each image"}, **_refused(*_REFUSALS)},
        openapi_extra={"requestBody": _BODY},
    )
    async def documented(query: Annotated[Query, fastapi.Query()]) -> Response:
        """Classify one image, or several; of several, a bad one gets a fault and spoils no other's answer."""
        raise NotImplementedError("the route below answers")

    async def classify(request: Request) -> Response:
        try:
            query = Query.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        model = models.get(query.model, query.version)
        facts = model.facts
        check_query(query, facts)
        model.admit()  # before the body is read
        images = await read_images(request, settings)
        judged = await judge_each(model, images, query.fusion or "", gone_of(request))
        if len(judged) == 1 and isinstance(judged[0], LimbeckError):
            raise judged[0]
        entries = [_entry(one, facts, query) for one in judged]
        fusion = (query.fusion or facts.fusion) if query.head in ("joint", "all") else None
        answers = Answers.model_validate(
            {
                "model": facts.name,
                "version": facts.version,
                "head": query.head,
                "fusion": fusion,
                "images": entries,
            }
        )
        return Response(answers.model_dump_json(), media_type="application/json")

    # FastAPI describes this route but does not serve it: taking its arguments apart costs more than all else here.
    described = app.router.routes[-1]
    assert isinstance(described, APIRoute)
    described.app = request_response(classify)


async def judge_each(
    model: Pool, images: list[bytes], fusion: str, gone: Callable[[], bool]
) -> list[Judged | LimbeckError]:
    """What became of each image; in their order."""
    if len(images) == 1:
        try:
            return [await model.judge(images[0], fusion, gone=gone)]
        except LimbeckError as error:
            return [error]
    found = await asyncio.gather(
        *(model.judge(image, fusion, gone=gone) for image in images), return_exceptions=True
    )
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, LimbeckError):
            raise one
    return [one for one in found if isinstance(one, Judged | LimbeckError)]


def check_query(query: Query, facts: Facts) -> None:
    """Raises HTTPException 422 for what this model, or no model, can answer."""
    if "distill" not in facts.heads:
        if query.head in ("distill", "all"):
            raise HTTPException(422, f"head={query.head}: this model has no distillation head; use head=class")
        if query.fusion not in (None, "class"):
            raise HTTPException(422, f"fusion={query.fusion}: this model has one head; leave fusion out")
    if query.fusion and query.head in ("class", "distill"):
        raise HTTPException(422, f"fusion={query.fusion}: head={query.head} is not fused; use head=joint")


def _entry(judged: Judged | LimbeckError, facts: Facts, query: Query) -> Answer | Fault:
    if isinstance(judged, Judged):
        return Answer.of(judged, facts, query)
    return Fault(status=status_of(judged), detail=" ".join(str(judged).split()))


def _add_facts(app: FastAPI, models: Registry, settings: Settings) -> None:
    @app.get("/v1/model", responses=_refused(401, 404, 429))
    async def model(name: str = "", version: str = "") -> ModelCard:
        """What answers here: the first model, or one by name and version."""
        facts = models.get(name, version).facts
        return ModelCard.model_validate(facts, from_attributes=True)

    @app.get("/v1/models", responses=_refused(401, 429))
    async def all_models() -> list[ModelCard]:
        """All that answer here."""
        return [ModelCard.model_validate(pool.facts, from_attributes=True) for pool in models.pools()]

    @app.get("/healthz")
    async def healthz() -> Status:
        """The process lives; asks nothing of the models."""
        return Status()

    @app.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Whether every model has a worker, room in its queue, and sound answers."""
        pools = models.pools()
        problems = all_problems(pools) or ([] if pools else ["no model is served"])
        response.status_code = 503 if problems else 200
        return Readiness(
            status="not ready" if problems else "ok",
            workers=sum(pool.alive for pool in pools),
            of=settings.workers * len(pools),
            problems=problems,
        )

    @app.get("/metrics", response_class=Response, responses=_METRICS | _refused(401, 429))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(models.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def bad_query(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [
            f"{part['loc'][-1]}: unknown; the query may have {', '.join(Query.model_fields)}"
            if part["type"] == "extra_forbidden"
            else f"{part['loc'][-1]}: {part['msg']}"
            for part in error.errors()
        ]
        return problem(request.url.path, 422, "; ".join(lines))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return problem(request.url.path, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(LimbeckError)
    async def unanswered(request: Request, error: LimbeckError) -> JSONResponse:
        return problem(request.url.path, status_of(error), str(error), headers_of(error))

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(GoneError)
    async def gone(request: Request, error: Exception) -> JSONResponse:
        return problem(request.url.path, 499, "the client went away")  # nobody reads it, but the log stays clean

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return problem(request.url.path, 500, _FAILED)
