"""POST /v1/explain: attention maps of the class token and the distillation token."""

from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, HTTPException, Request, Response

from server.ipc.messages import Maps, Task
from server.schema.explain import EXPLAIN_PATH, ExplainQuery, Explanation
from server.schema.mistakes import explain_error
from server.serving.registry import Registry
from server.settings import Settings
from server.web.body import carrier_of, content_type_of, read_images
from server.web.connection import disconnect_check
from teacher_cache.errors import ImageError


def add_explain(app: FastAPI, models: Registry, settings: Settings, openapi: dict[str, Any]) -> None:
    """Add the route. openapi: `responses` and `openapi_extra` of a route whose body is an image."""

    @app.post(
        EXPLAIN_PATH,
        response_model=Explanation,
        responses={
            200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
            **openapi["responses"],
        },
        openapi_extra=openapi["openapi_extra"],
    )
    async def explain(request: Request, query: Annotated[ExplainQuery, fastapi.Query()]) -> Response | Explanation:
        """Attention maps of both tokens for one image, always computed with torch, not the runtime."""
        models.get(query.model, query.version).admit()  # before the body is read
        images = await read_images(request, settings)
        model = models.get(query.model, query.version)  # again: the model may have been reloaded meanwhile
        if len(images) > 1:
            raise HTTPException(422, f"{len(images)} images; send one image per request")
        task = Task(images[0], kind=query.method)
        try:
            maps: Maps = await model.run(task, is_disconnected=disconnect_check(request.scope))
        except ImageError as error:
            raise explain_error(error, images[0], carrier_of(content_type_of(request.scope))) from None
        if query.format == "png":
            return Response(maps.sheet, media_type="image/png")
        return Explanation.from_maps(maps, model.info, query.method)
