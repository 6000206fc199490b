"""Middleware around all routes: request id, API key and rate, body size, metrics, tracing and access log."""

import hmac
import json
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import ServerMetrics
from server.settings import Settings
from server.tracing import Trace, current_trace
from server.web.access_log import open_access_log
from server.web.auth import BEARER, TokenBucket, key_digest
from server.web.byte_budget import ByteBudget
from server.web.error_responses import error_response
from server.web.proxies import checked_root_path, route_path

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

PUBLIC_PATHS = {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Paths that need no API key: the probes, and the page, in which the user enters a key."""
PUBLIC_PREFIXES = ("/page/",)

RESERVE = "reserve"
"""Key in the request's state: a function that reserves more bytes for it, or raises HTTPException 503."""
_BUDGET_EXCEEDED = "too many bytes in the bodies of all requests (max_held_bytes); retry later"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class RequestLimits:
    """ASGI middleware. keys: SHA-256 digests; [] accepts all. routes: for the path label of rejected requests."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: ServerMetrics,
        keys: list[bytes],
        tracer: "Tracer | None",
        routes: Sequence[BaseRoute],
        byte_budget: ByteBudget,
    ) -> None:
        self._app, self._settings, self._metrics, self._keys = app, settings, metrics, keys
        self._tracer, self._routes = tracer, routes
        self._buckets = {key: TokenBucket(settings.rate) for key in keys} if settings.rate else {}
        self._log = open_access_log(settings.access_log)
        self._byte_budget = byte_budget
        self._prefix = checked_root_path(settings.root_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size, reserved = time.perf_counter(), 499, 0, 0
        scope.setdefault("state", {})
        received, scope = scope, {**scope, "path": route_path(scope["path"], self._prefix)}
        if scope["method"] == "HEAD":  # FastAPI has no HEAD routes; uvicorn drops the body of a response to HEAD
            scope["method"] = "GET"
        headers = dict(scope["headers"])
        trace = Trace(self._tracer, headers, started) if self._tracer is not None else None
        current_trace.set(trace)
        client_id = headers.get(b"x-request-id", b"")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else os.urandom(8).hex().encode()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        def reserve(count: int) -> None:
            nonlocal reserved
            reserved += count
            self._byte_budget.reserved += count
            if self._byte_budget.is_exceeded:
                raise HTTPException(503, _BUDGET_EXCEEDED, {"Retry-After": "1"})

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                count = len(message["body"])
                size += count
                if size > self._settings.max_body_bytes:
                    raise HTTPException(413, self._too_large)
                reserve(count)
            return message

        scope["state"][RESERVE] = reserve
        rejection = None
        try:
            rejection = self._rejection(scope["path"], headers)
            await (rejection or self._app)(scope, receive_counted, send_with_headers)
        except BaseException:
            status = 500
            raise
        finally:
            self._byte_budget.reserved -= reserved
            path = self._path_label(scope, rejection is not None)
            if trace is not None:
                trace.end(received["method"], path, status)
            self._record(received, path, status, time.perf_counter() - started, size, request_id)

    @property
    def _too_large(self) -> str:
        return f"the body is too large; the maximum is {self._settings.max_body_bytes:,} bytes"

    def _rejection(self, path: str, headers: dict[bytes, bytes]) -> ASGIApp | None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            return error_response(path, 413, self._too_large, {"Connection": "close"})
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        if encoding not in (b"", b"identity") and not path.startswith("/v2/"):
            name = encoding.decode("latin-1")[:20]
            return error_response(
                path, 415, f"Content-Encoding '{name}' is not supported here; send the body without it"
            )
        if not self._keys or path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES):
            return None
        key = headers.get(b"x-api-key") or BEARER.sub(b"", headers.get(b"authorization", b""))
        # Compare with all keys, so that the time reveals nothing.
        matches = [hmac.compare_digest(key_digest(key), one) for one in self._keys]
        if not any(matches):
            challenge = {"WWW-Authenticate": "Bearer"}
            return error_response(
                path,
                401,
                "missing or unknown API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
                challenge,
            )
        if self._buckets and (wait := self._buckets[self._keys[matches.index(True)]].take()):
            message = f"more than {self._settings.rate:g} requests per second; retry in {int(wait) + 1} s"
            return error_response(path, 429, message, {"Retry-After": str(int(wait) + 1)})
        return None

    def _path_label(self, scope: Scope, is_rejected: bool) -> str:
        """The route's template, e.g. /page/{name}; "other" without a route. A rejected request was not routed."""
        if is_rejected:
            routes = (one for one in self._routes if isinstance(one, Route))
            return next((one.path for one in routes if one.path_regex.match(scope["path"])), "other")
        path: str = getattr(scope.get("route"), "path", "other")
        return path

    def _record(self, scope: Scope, path: str, status: int, seconds: float, size: int, request_id: bytes) -> None:
        self._metrics.answered(path, status, seconds)
        if self._log is not None:
            client = scope.get("client")
            line = {
                "time": time.time(),
                "id": request_id.decode(),
                "client": client[0] if client else "",
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 3),
                "body_bytes": size,
            } | scope.get("state", {}).get("logged", {})
            self._log.info(json.dumps(line, separators=(",", ":")))
