"""What every request passes first and last: its id, key and rate, the size of its body, the counts and the log."""

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
from server.tracing import Trace, current
from server.web.access_log import access_log
from server.web.auth import BEARER, TokenBucket, key_digest
from server.web.byte_budget import ByteBudget
from server.web.error_responses import error_response

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

OPEN_PATHS = {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Answered without a key: the probes, and the page, which asks for one."""
OPEN_FOLDERS = ("/page/",)

HOLD = "hold"
"""In a request's state: a function that counts more bytes as held for it; raises HTTPException 503."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class RequestLimits:
    """ASGI middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: ServerMetrics,
        keys: list[bytes],
        tracer: "Tracer | None",
        routes: Sequence[BaseRoute],
        held: ByteBudget,
    ) -> None:
        self._app, self._settings, self._metrics, self._keys = app, settings, metrics, keys
        self._tracer, self._routes = tracer, routes
        self._buckets = {key: TokenBucket(settings.rate) for key in keys} if settings.rate else {}
        self._log = access_log(settings.access_log)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, size, held, method = time.perf_counter(), 499, 0, 0, scope["method"]
        if method == "HEAD":  # which FastAPI does not know: a GET, whose body uvicorn leaves out
            scope = {**scope, "method": "GET"}
        headers = dict(scope["headers"])
        trace = Trace(self._tracer, headers, began) if self._tracer is not None else None
        current.set(trace)
        asked = headers.get(b"x-request-id", b"")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else os.urandom(8).hex().encode()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        def hold(count: int) -> None:
            nonlocal held
            held += count
            self._held.count += count
            if self._held.full:
                raise HTTPException(503, "the server holds too many bytes; ask again later", {"Retry-After": "1"})

        async def body() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                count = len(message["body"])
                size += count
                if size > self._settings.max_body_bytes:
                    raise HTTPException(413, self._too_large)
                hold(count)
            return message

        scope.setdefault("state", {})[HOLD] = hold
        refused = None
        try:
            refused = self._refusal(scope["path"], headers)
            await (refused or self._app)(scope, body, answer)
        except BaseException:
            status = 500
            raise
        finally:
            self._held.count -= held
            scope["method"] = method
            path = getattr(scope.get("route"), "path", None) or (refused and self._route(scope["path"])) or "other"
            if trace is not None:
                trace.end(scope["method"], path, status)
            self._count(scope, path, status, time.perf_counter() - began, size, request_id)

    @property
    def _too_large(self) -> str:
        return f"the body is too large; send at most {self._settings.max_body_bytes:,} bytes"

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ASGIApp | None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            return error_response(path, 413, self._too_large, {"Connection": "close"})
        if headers.get(b"content-encoding", b"identity") != b"identity" and not path.startswith("/v2/"):
            return error_response(path, 415, "an encoded body is not taken here; send it without Content-Encoding")
        if not self._keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return None
        key = headers.get(b"x-api-key") or BEARER.sub(b"", headers.get(b"authorization", b""))
        known = [
            hmac.compare_digest(key_digest(key), one) for one in self._keys
        ]  # all keys, so that timing reveals nothing
        if not any(known):
            hint = {"WWW-Authenticate": "Bearer"}
            return error_response(
                path, 401, "no such key; send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", hint
            )
        if self._buckets and (wait := self._buckets[self._keys[known.index(True)]].wait()):
            told = f"more than {self._settings.rate:g} requests a second; ask again in {int(wait) + 1} s"
            return error_response(path, 429, told, {"Retry-After": str(int(wait) + 1)})
        return None

    def _route(self, path: str) -> str:
        """What the counts call a path that was refused before it was routed; "" where no route has it."""
        known = (one for one in self._routes if isinstance(one, Route))
        return next((one.path for one in known if one.path_regex.match(path)), "")

    def _count(self, scope: Scope, path: str, status: int, seconds: float, size: int, request_id: bytes) -> None:
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
