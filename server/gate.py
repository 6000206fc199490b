"""What every request passes first and last: its id, key and rate, the size of its body, the counts and the log."""

import hashlib
import hmac
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from fastapi import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from server.held import Held
from server.metrics import Metrics
from server.problem import problem
from server.settings import Settings
from server.tracing import Trace, current
from teacher_cache.errors import LimbeckError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

OPEN_PATHS = {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
"""Answered without a key: the probes, and the page, which asks for one."""
OPEN_FOLDERS = ("/page/",)

KEYS_VARIABLE = "LIMBECK_API_KEYS"
HOLD = "hold"
"""In a request's state: a function that counts more bytes as held for it; raises HTTPException 503."""
log = logging.getLogger("limbeck")
_BEARER = re.compile(rb"^bearer +", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


def read_keys(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[bytes]:
    """Digests of the keys that may ask; [] where everyone may. Raises LimbeckError for a file that holds none."""
    if settings.api_keys is not None:
        try:
            text = settings.api_keys.read_text("utf-8-sig")
        except OSError as error:
            raise LimbeckError(f"--api-keys '{settings.api_keys}' cannot be read: {error.strerror}") from None
        except UnicodeError:
            raise LimbeckError(f"--api-keys '{settings.api_keys}' is no text; write it in UTF-8") from None
        keys = [key for line in text.splitlines() if (key := line.strip()) and not key.startswith("#")]
        if not keys:
            raise LimbeckError(f"--api-keys '{settings.api_keys}' holds no key; write one a line")
    else:
        keys = environment.get(KEYS_VARIABLE, "").replace(",", " ").split()
    if settings.rate and not keys:
        raise LimbeckError(f"--rate counts by key, and there are no keys; give --api-keys or set {KEYS_VARIABLE}")
    return [_digest(key.encode()) for key in keys]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Bucket:
    """Lets `rate` requests a second through, and up to a second's worth at once."""

    def __init__(self, rate: float) -> None:
        self._rate, self._room = rate, max(rate, 1.0)
        self._left, self._then = self._room, time.monotonic()

    def wait(self) -> float:
        """Seconds until there is room for this request; 0 where there was, and it is taken."""
        now = time.monotonic()
        self._left = min(self._room, self._left + (now - self._then) * self._rate)
        self._then = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Gate:
    """ASGI middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        keys: list[bytes],
        tracer: "Tracer | None",
        routes: Sequence[BaseRoute],
        held: Held,
    ) -> None:
        self._app, self._settings, self._metrics, self._keys = app, settings, metrics, keys
        self._tracer, self._routes = tracer, routes
        self._buckets = {key: Bucket(settings.rate) for key in keys} if settings.rate else {}
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
            return problem(path, 413, self._too_large, {"Connection": "close"})
        if headers.get(b"content-encoding", b"identity") != b"identity" and not path.startswith("/v2/"):
            return problem(path, 415, "an encoded body is not taken here; send it without Content-Encoding")
        if not self._keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return None
        key = headers.get(b"x-api-key") or _BEARER.sub(b"", headers.get(b"authorization", b""))
        known = [hmac.compare_digest(_digest(key), one) for one in self._keys]  # all of them: time tells nothing
        if not any(known):
            hint = {"WWW-Authenticate": "Bearer"}
            return problem(
                path, 401, "no such key; send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", hint
            )
        if self._buckets and (wait := self._buckets[self._keys[known.index(True)]].wait()):
            told = f"more than {self._settings.rate:g} requests a second; ask again in {int(wait) + 1} s"
            return problem(path, 429, told, {"Retry-After": str(int(wait) + 1)})
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


def access_log(target: str) -> logging.Logger | None:
    """A logger that writes plain lines to a file, or "-", from a thread of its own; None for ""."""
    if not target:
        return None
    try:
        handler = _Lines(target, sys.stdout if target == "-" else logging.FileHandler(target).stream)
    except OSError as error:
        raise LimbeckError(f"--access-log '{target}' cannot be written: {error.strerror}") from None
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    logging.handlers.QueueListener(waiting, handler).start()
    logger = logging.Logger("limbeck.access", logging.INFO)
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    return logger


class _Lines(logging.StreamHandler[Any]):
    """Counts the lines that cannot be written, as on a full disk, and tells of it now and then."""

    def __init__(self, target: str, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._target, self._lost = target, 0

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if self._lost % 1000 == 0:
            lost = f"{self._lost + 1:,} lines are lost" if self._lost else "lines are lost"
            log.error("--access-log '%s' cannot be written: %s; %s", self._target, sys.exception(), lost)
        self._lost += 1
