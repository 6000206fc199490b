"""Routes of the Open Inference Protocol, version 2 (KServe, Triton), under /v2."""

import asyncio
import logging
import re
import zlib
from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import Any

import pydantic_core
from fastapi import FastAPI, HTTPException, Request, Response

from server.api.classifier_tensors import check_outputs, images_of, output_tensors, signature
from server.api.tensors import HEADER_LENGTH, parameters_of, read_inputs, split_body
from server.errors import RequestError, headers_of, status_of
from server.ipc.messages import Pixels, Prediction
from server.schema.mistakes import Carrier, explain_error
from server.schema.open_inference import (
    Index,
    IndexEntry,
    ModelMetadata,
    Nothing,
    ServerMetadata,
    infer_openapi,
    protocol_errors,
    repository_openapi,
)
from server.serving.pool import Pool, all_problems
from server.serving.registry import Registry
from server.settings import Settings
from server.web.body import OFFLOAD_BYTES, read_body
from server.web.connection import disconnect_check
from server.web.middleware import RESERVE
from teacher_cache.errors import LimbeckError, RunError, StoreError

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository"]
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's window bits for each
_ZERO = re.compile(r"q=0(\.0*)?")  # the weight of an encoding that the client does not accept
_MIN_COMPRESSED_BYTES = 1000  # smaller responses are not compressed
_CHUNK_BYTES = 1_000_000

log = logging.getLogger("limbeck")


def add_inference_protocol(app: FastAPI, models: Registry, settings: Settings) -> None:
    """Add the health, metadata, inference and repository routes. Their errors are {"error": ...}."""
    _add_health(app, models)
    _add_metadata(app, models)
    _add_infer(app, models, settings)
    _add_repository(app, models, settings)


def _add_health(app: FastAPI, models: Registry) -> None:
    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> Nothing:
        """The server process is running."""
        return Nothing()

    @app.get("/v2/health/ready", tags=["v2"], responses=protocol_errors(503))
    async def ready() -> Nothing:
        """Every model is ready."""
        return _require_ready(all_problems(models.pools()))

    @app.get("/v2/models/{name}/ready", tags=["v2"], responses=protocol_errors(401, 404, 429, 503))
    @app.get(
        "/v2/models/{name}/versions/{version}/ready", tags=["v2"], responses=protocol_errors(401, 404, 429, 503)
    )
    async def model_ready(name: str, version: str = "") -> Nothing:
        """This model is ready."""
        return _require_ready(models.get(name, version).problems())


def _require_ready(problems: list[str]) -> Nothing:
    if problems:
        raise HTTPException(503, "; ".join(problems), {"Retry-After": "1"})
    return Nothing()


def _add_metadata(app: FastAPI, models: Registry) -> None:
    server = ServerMetadata(name="limbeck", version=version_of("limbeck"), extensions=EXTENSIONS)

    @app.get("/v2", tags=["v2"], responses=protocol_errors(401, 429))
    async def metadata() -> ServerMetadata:
        """Name, version and protocol extensions of the server."""
        return server

    @app.get("/v2/models/{name}", tags=["v2"], responses=protocol_errors(401, 404, 429))
    @app.get("/v2/models/{name}/versions/{version}", tags=["v2"], responses=protocol_errors(401, 404, 429))
    async def model_metadata(name: str, version: str = "") -> ModelMetadata:
        """Versions and tensors of a model. A request has one of the inputs."""
        facts = models.get(name, version).info
        versions = [pool.info.version for pool in models.pools() if pool.info.name == facts.name]
        tensors: Any = signature(facts)
        return ModelMetadata(name=facts.name, versions=versions, platform=f"limbeck_{facts.runtime}", **tensors)


def _add_infer(app: FastAPI, models: Registry, settings: Settings) -> None:
    options: dict[str, Any] = {
        "tags": ["v2"],
        "response_model": None,
        "responses": protocol_errors(400, 401, 404, 413, 415, 429, 500, 503, 504),
        "openapi_extra": infer_openapi(),
    }

    @app.post("/v2/models/{name}/infer", **options)
    @app.post("/v2/models/{name}/versions/{version}/infer", **options)
    async def infer(request: Request, name: str, version: str = "") -> Response:
        """Classify encoded images or prepared pixels. If one of them is invalid, the whole request fails."""
        models.get(name, version).admit()  # before the body is read
        body = await _read_decompressed(request, settings.max_body_bytes)
        while True:
            model = models.get(name, version)
            header, images = await _run_off_loop(len(body), _parse_request, request, body, model, settings)
            if models.get(name, version) is model:  # else it was reloaded meanwhile: parse again
                break
        model.admit(len(images))  # one rejected image rejects the whole request
        predictions = await _predict(model, images, _deadline(header, settings), disconnect_check(request.scope))
        written = output_tensors(header, predictions, model.info)
        answer = {
            "model_name": model.info.name,
            "model_version": model.info.version,
            "outputs": [entry for entry, _ in written],
        }
        if "id" in header:
            answer["id"] = header["id"]
        tail = b"".join(raw for _, raw in written)
        return _build_response(request, pydantic_core.to_json(answer), tail)


def _parse_request(
    request: Request, body: bytes, model: Pool, settings: Settings
) -> tuple[dict[str, Any], list[bytes | Pixels]]:
    header, tail = split_body(body, request.headers.get(HEADER_LENGTH))
    if not isinstance(header.get("id", ""), str):
        raise RequestError("id: must be a string")
    check_outputs(header, model.info)
    return header, images_of(read_inputs(header, tail), model.info, settings.max_images)


def _deadline(header: dict[str, Any], settings: Settings) -> float:
    """Deadline in seconds: the server's, or Triton's `timeout` (microseconds) if shorter and not 0."""
    timeout = parameters_of(header).get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise RequestError("parameter 'timeout': must be a whole number of microseconds")
    return min(timeout, int(1e6 * settings.deadline)) / 1e6 if timeout else settings.deadline


async def _predict(
    model: Pool, images: list[bytes | Pixels], deadline: float, is_disconnected: Callable[[], bool]
) -> list[Prediction]:
    tasks = (model.predict(image, deadline=deadline, is_disconnected=is_disconnected) for image in images)
    predictions: list[Prediction] = []
    for number, one in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if isinstance(one, LimbeckError):
            error = explain_error(one, images[number], Carrier.TENSOR)
            prefix = f"image {number}: " if len(images) > 1 else ""
            raise HTTPException(status_of(error), f"{prefix}{error}", headers_of(error))
        if isinstance(one, BaseException):
            raise one
        predictions.append(one)
    return predictions


async def _run_off_loop(size: int, function: Any, *arguments: Any) -> Any:
    """Call a function, in a thread if the body is large, so that it does not block other requests."""
    return await asyncio.to_thread(function, *arguments) if size > OFFLOAD_BYTES else function(*arguments)


async def _read_decompressed(request: Request, limit: int) -> bytes:
    """Read and decompress the body, and reserve its bytes in the server's budget.

    Raises RequestError for malformed data, HTTPException 413 for more than `limit` bytes, 415 for an unknown
    encoding, 503 if the budget is exceeded.
    """
    body, encoding = await read_body(request.receive), request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise HTTPException(415, f"content encoding '{encoding[:20]}' is not supported; use gzip or deflate")
    decompressor, parts, length = zlib.decompressobj(_WINDOW_BITS[encoding]), list[bytes](), 0
    while not decompressor.eof:
        try:
            parts.append(await asyncio.to_thread(decompressor.decompress, body, _CHUNK_BYTES))
        except zlib.error:
            raise RequestError(f"the body is not valid {encoding} data") from None
        if not parts[-1]:
            raise RequestError(f"the body is a truncated {encoding} stream")
        request.scope["state"][RESERVE](len(parts[-1]))
        body, length = decompressor.unconsumed_tail, length + len(parts[-1])
        if length > limit:
            raise HTTPException(413, f"the decompressed body is too large; the maximum is {limit:,} bytes")
    if decompressor.unused_data:
        raise RequestError(f"{len(decompressor.unused_data)} bytes after the {encoding} stream; send one stream")
    return b"".join(parts)


def _build_response(request: Request, head: bytes, tail: bytes) -> Response:
    headers, body = {}, head + tail
    if tail:
        headers[HEADER_LENGTH] = str(len(head))
    offered = request.headers.get("accept-encoding", "").lower().replace(" ", "").split(",")
    accepted = [name for name, _, weight in (one.partition(";") for one in offered) if not _ZERO.fullmatch(weight)]
    encoding = next((name for name in ("gzip", "deflate") if name in accepted), "")
    if encoding and len(body) >= _MIN_COMPRESSED_BYTES:
        compressor = zlib.compressobj(level=1, wbits=_WINDOW_BITS[encoding])
        body = compressor.compress(body) + compressor.flush()
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    return Response(body, media_type="application/octet-stream" if tail else "application/json", headers=headers)


def _add_repository(app: FastAPI, models: Registry, settings: Settings) -> None:
    options: dict[str, Any] = {"tags": ["v2"], "openapi_extra": repository_openapi()}

    @app.post("/v2/repository/index", responses=protocol_errors(400, 401, 413, 429), **options)
    async def index(request: Request) -> Index:
        """All models that the server was started with; with {"ready": true}, only the ready ones."""
        body = await _read_object(request)
        return Index(
            [
                IndexEntry(
                    name=one.name,
                    version=one.version,
                    state="READY" if one.ready else "UNAVAILABLE",
                    reason=one.reason,
                )
                for one in models.list_models()
                if one.ready or body.get("ready") is not True
            ]
        )

    @app.post(
        "/v2/repository/models/{name}/load", responses=protocol_errors(400, 401, 403, 404, 413, 429), **options
    )
    async def load(request: Request, name: str) -> Nothing:
        """Reload a model's bundle and switch to it once it is ready; no request is lost."""
        _check_allowed(request, settings)
        if parameters_of(await _read_object(request)):
            raise RequestError(
                "parameters are not supported: a model is always loaded from its own folder; remove parameters"
            )
        try:
            await models.load(name)
        except (RunError, StoreError, OSError) as error:
            log.error("%s", error)
            raise RequestError(
                "the bundle cannot be loaded, and the old model stays; see the server's log"
            ) from None
        return Nothing()

    @app.post(
        "/v2/repository/models/{name}/unload", responses=protocol_errors(400, 401, 403, 404, 413, 429), **options
    )
    async def unload(request: Request, name: str) -> Nothing:
        """Stop serving a model until it is loaded again. Pending requests are still answered."""
        _check_allowed(request, settings)
        parameters_of(await _read_object(request))
        await models.unload(name)
        return Nothing()


def _check_allowed(request: Request, settings: Settings) -> None:
    """Raise HTTPException 403 if loading is disabled, or for a web page whose origin is not in settings.cors."""
    if not settings.allows_loading:
        raise HTTPException(403, "loading and unloading is disabled; enable it with --set model_control=on")
    if "origin" in request.headers and request.headers["origin"] not in settings.cors:
        raise HTTPException(403, "loading and unloading is not allowed from this Origin; add it with --cors")


async def _read_object(request: Request) -> dict[str, Any]:
    """The JSON object of the body; {} if the body is empty."""
    body = await read_body(request.receive)
    return split_body(body, None)[0] if body else {}
