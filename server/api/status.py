"""Routes that report the state of the server: health, readiness, metrics and models."""

from fastapi import FastAPI, Response

from server.metrics import CONTENT_TYPE
from server.schema.classify import ModelCard, Readiness, Status
from server.schema.responses import METRICS_RESPONSE, error_responses
from server.serving.pool import all_problems
from server.serving.registry import Registry


def add_status_routes(app: FastAPI, models: Registry) -> None:
    """Add /v1/model, /v1/models, /healthz, /readyz and /metrics."""

    @app.get("/v1/model", responses=error_responses(401, 404, 429))
    async def model(name: str = "", version: str = "") -> ModelCard:
        """A served model: the first one, or one by name and version."""
        facts = models.get(name, version).info
        return ModelCard.model_validate(facts, from_attributes=True)

    @app.get("/v1/models", responses=error_responses(401, 429))
    async def all_models() -> list[ModelCard]:
        """All served models."""
        return [ModelCard.model_validate(pool.info, from_attributes=True) for pool in models.pools()]

    @app.get("/healthz")
    async def healthz() -> Status:
        """Whether the server process is running; does not check the models."""
        return Status()

    @app.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Whether every model has a worker, space in its queue, and finite outputs."""
        pools = models.pools()
        problems = all_problems(pools)
        response.status_code = 503 if problems else 200
        return Readiness(
            status="not ready" if problems else "ok",
            workers=sum(pool.ready_workers for pool in pools),
            of=sum(pool.workers for pool in pools),
            problems=problems,
        )

    @app.get("/metrics", response_class=Response, responses=METRICS_RESPONSE | error_responses(401, 429))
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        return Response(models.metrics.text(), media_type=CONTENT_TYPE)
