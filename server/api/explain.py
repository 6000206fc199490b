"""POST /v1/explain: where the class token and the distillation token look."""

from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, HTTPException, Request, Response

from server.ipc.messages import Maps, Task
from server.schema.explain import EXPLAIN, ExplainQuery, Explanation
from server.serving.registry import Registry
from server.settings import Settings
from server.web.body import read_images
from server.web.connection import disconnection_of


def add_explain(app: FastAPI, models: Registry, settings: Settings, described: dict[str, Any]) -> None:
    """described: `responses` and `openapi_extra` of a route that takes images."""

    @app.post(
        EXPLAIN,
        response_model=Explanation,
        responses={
            200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
            **described["responses"],
        },
        openapi_extra=described["openapi_extra"],
    )
    async def explain(request: Request, query: Annotated[ExplainQuery, fastapi.Query()]) -> Response | Explanation:
        """Attention maps of both tokens for one image, computed by the torch network, whatever the runtime."""
        models.get(query.model, query.version).admit()  # before the body is read
        images = await read_images(request, settings)
        model = models.get(query.model, query.version)  # the bundle may have been read again since
        if len(images) > 1:
            raise HTTPException(422, f"{len(images)} images; send one to have it explained")
        maps: Maps = await model.run(
            Task(images[0], kind=query.method), is_disconnected=disconnection_of(request.scope)
        )
        if query.format == "png":
            return Response(maps.sheet, media_type="image/png")
        return Explanation.of(maps, model.info, query.method)
