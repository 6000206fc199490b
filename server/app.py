"""The ASGI application: all routes, the error handlers and the middleware."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from server.api.classify import ClassifyRoute, fast_path
from server.api.explain import add_explain
from server.api.open_inference import add_inference_protocol
from server.api.status import add_status_routes
from server.page import add_page
from server.schema.classify import Answers
from server.schema.responses import ERROR_DESCRIPTIONS, IMAGE_BODY, error_responses
from server.serving.pool import all_problems
from server.serving.registry import Registry
from server.settings import Settings
from server.web.byte_budget import ByteBudget
from server.web.error_responses import add_error_handlers
from server.web.middleware import RequestLimits
from server.web.openapi import OpenApiApp
from server.web.proxies import checked_root_path, trust_proxies

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def create_app(
    models: Registry, settings: Settings, keys: list[bytes], tracer: "Tracer | None", byte_budget: ByteBudget
) -> ASGIApp:
    """Build the application. The caller closes the models. keys: digests of the valid API keys; [] accepts all."""
    models.metrics.ready.set_function(lambda: not all_problems(models.pools()))
    classify = ClassifyRoute(models, settings)
    routed = _add_routes(models, settings, classify)
    app: ASGIApp = RequestLimits(
        fast_path(routed, classify), settings, models.metrics, keys, tracer, routed.routes, byte_budget
    )
    if settings.cors:  # outermost: a browser's preflight request has no key
        app = CORSMiddleware(app, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])
    return trust_proxies(app, settings.trusted_proxies)


def _add_routes(models: Registry, settings: Settings, classify: ClassifyRoute) -> FastAPI:
    # No docs_url: FastAPI's documentation page loads its script from another site.
    # The middleware removes the last slash; a redirect would lead from https to http behind a proxy.
    prefix = checked_root_path(settings.root_path)
    app = OpenApiApp(
        title="limbeck",
        version=version("limbeck"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": prefix}] if prefix else None,
    )
    image_route: dict[str, Any] = {
        "responses": error_responses(*ERROR_DESCRIPTIONS),
        "openapi_extra": {"requestBody": IMAGE_BODY},
    }
    answers = {200: {"model": Answers, "description": "One entry for each image"}}
    classify.add_route(app, image_route | {"responses": answers | image_route["responses"]})
    add_status_routes(app, models)
    add_explain(app, models, settings, image_route)
    add_inference_protocol(app, models, settings)
    add_page(app, settings)
    add_error_handlers(app)
    return app
