"""Routes that report the state of the server: health, readiness, metrics and models."""

from fastapi import FastAPI, Response

from server.metrics import CONTENT_TYPE
from server.schema.classify import ModelCard, Readiness, Status
from server.schema.responses import METRICS_RESPONSE, error_responses
from server.serving.pool import all_problems
from server.serving.registry import Registry
from server.settings import Settings


def add_status_routes(app: FastAPI, models: Registry, settings: Settings) -> None:
    @app.get("/v1/model", responses=error_responses(401, 404, 429))
    async def model(name: str = "", version: str = "") -> ModelCard:
        """What answers here: the first model, or one by name and version."""
        facts = models.get(name, version).facts
        return ModelCard.model_validate(facts, from_attributes=True)

    @app.get("/v1/models", responses=error_responses(401, 429))
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

    @app.get("/metrics", response_class=Response, responses=METRICS_RESPONSE | error_responses(401, 429))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(models.metrics.text(), media_type=CONTENT_TYPE)
