"""Requests that come through a reverse proxy: the client's address, and the path as the server knows it."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from teacher_cache.errors import LimbeckError

_REPEATED_SLASHES = re.compile(r"(?<!/models)/{2,}")
"""Except after /models: an empty segment there is an empty model name."""
_PEER = "limbeck.peer"
"""Key in the scope: host and port of the other end of the connection, which may be a proxy."""
_ROOT_PATH = re.compile(r"(/[\w.~-]+)*", re.ASCII)


def trust_proxies(app: ASGIApp, proxies: Iterable[str]) -> ASGIApp:
    """Wrap an application so that X-Forwarded-For and X-Forwarded-Proto from these proxies set client and scheme.

    The client stays the proxy if X-Forwarded-For has something else than an address in the client's place.
    proxies: addresses or networks; none: the headers are ignored. Raises LimbeckError for an invalid one.
    """
    trusted = [_checked(one.strip()) for one in proxies]
    if not trusted:
        return app

    async def check_client(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("client") is not scope.get(_PEER):
            address = _address(scope["client"][0])
            scope["client"] = (address, scope["client"][1]) if address else scope[_PEER]
        await app(scope, receive, send)

    inner: Any = check_client  # uvicorn has its own ASGI types
    wrapped = cast(ASGIApp, ProxyHeadersMiddleware(inner, trusted))

    async def keep_peer(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_PEER] = scope.get("client")
        await wrapped(scope, receive, send)

    return keep_peer


def _address(text: str) -> str:
    """An IP address without its zone; "" for other text, since a proxy may pass on what a client claims."""
    try:
        return str(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return ""


def _checked(proxy: str) -> str:
    try:
        ipaddress.ip_network(proxy)
    except ValueError as error:
        reason = str(error).removeprefix(f"{proxy!r} ") if proxy else "is empty"
        advice = "give addresses or networks, such as 10.0.0.7 or 10.0.0.0/8; 0.0.0.0/0 and ::/0 are all"
        raise LimbeckError(f"--trusted-proxies '{proxy}': {reason}; {advice}") from None
    return proxy


def checked_root_path(root_path: str) -> str:
    """The path prefix without a last slash. Raises LimbeckError if it is not a path."""
    prefix = root_path.rstrip("/")
    if not _ROOT_PATH.fullmatch(prefix):
        raise LimbeckError(f"--root-path '{root_path}' is not a path prefix; give one like /limbeck")
    return prefix


def route_path(path: str, prefix: str) -> str:
    """The path to look up: without the proxy's prefix, repeated slashes and a last slash."""
    if "//" in path:
        path = _REPEATED_SLASHES.sub("/", path)
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        path = path[len(prefix) :]
    return path.rstrip("/") or "/"
