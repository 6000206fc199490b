"""The HTTP API: the routes of the classifier, its facts, and how errors are worded."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from server.body import FIELD
from server.classify import Classify, shortcut
from server.document import Documented
from server.explain import add_explain
from server.gate import Gate
from server.held import Held
from server.inference_protocol import add_inference_protocol
from server.metrics import CONTENT_TYPE
from server.page import add_page
from server.pool import all_problems
from server.problem import add_errors
from server.registry import Registry
from server.schema import Answers, Encoded, ModelCard, Problem, Readiness, Status
from server.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

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


def create_app(
    models: Registry, settings: Settings, keys: list[bytes], tracer: "Tracer | None", held: Held
) -> ASGIApp:
    """The application around the models; whoever made them closes them. keys: digests of those that may ask."""
    models.metrics.ready.set_function(lambda: not all_problems(models.pools()))
    classify = Classify(models, settings)
    routed = _routes(models, settings, classify)
    app: ASGIApp = Gate(shortcut(routed, classify), settings, models.metrics, keys, tracer, routed.routes, held)
    if settings.cors:  # outermost: a browser asks without a key whether it may ask with one
        app = CORSMiddleware(app, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])
    return app


def _routes(models: Registry, settings: Settings, classify: Classify) -> FastAPI:
    # FastAPI's documentation page would load its script from another site.
    app = Documented(title="limbeck", version=version("limbeck"), docs_url=None, redoc_url=None)
    described: dict[str, Any] = {"responses": _refused(*_REFUSALS), "openapi_extra": {"requestBody": _BODY}}
    answers = {200: {"model": Answers, "description": "One entry for each image"}}
    classify.add_route(app, described | {"responses": answers | described["responses"]})
    _add_facts(app, models, settings)
    add_explain(app, models, settings, described)
    add_inference_protocol(app, models, settings)
    add_page(app, settings)
    add_errors(app)
    return app


def _refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _REFUSALS[status]} for status in statuses}


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
        problems = all_problems(pools)
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
        return Response(models.metrics.text(), media_type=CONTENT_TYPE)
