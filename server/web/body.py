"""Read the images from a request body: raw bytes, a form, or JSON. The middleware limits its size."""

import asyncio
import codecs
import json
from collections.abc import AsyncGenerator
from typing import Any

import pydantic
from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from server.schema.classify import IMAGE_FIELD, Encoded
from server.schema.mistakes import Carrier, mistake_in_json
from server.settings import Settings
from teacher_cache.errors import validation_reason

FORM, JSON = "multipart/form-data", "application/json"
_CARRIERS = {
    FORM: Carrier.FORM_FILE,
    JSON: Carrier.JSON,
    "application/x-www-form-urlencoded": Carrier.URL_ENCODED,
}
MAX_REPORTED_ERRORS = 3
"""Validation errors of a JSON body that the response lists."""
MAX_JSON_COMMAS = 10_000
"""Commas allowed in a JSON body; a valid request has fewer."""
_BOUNDARY_BYTES = 200
_NAME_CHARS = 100
OFFLOAD_BYTES = 200_000
"""Larger JSON bodies are parsed in a thread, so that they do not block other requests."""


class _Form(MultiPartParser):
    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True  # Starlette accepts a truncated form


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def content_type_of(scope: Scope) -> str:
    """The Content-Type of a request; "" if it has none."""
    value: bytes = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return value.decode("latin-1")


def carrier_of(content_type: str) -> Carrier:
    """How the images of a request with this Content-Type come."""
    return _CARRIERS.get(media_type(content_type), Carrier.BODY)


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """The encoded images of a body, in order. Raises HTTPException 400, 413 or 422."""
    kind = media_type(content_type_of(request.scope))
    if kind == FORM:
        return await _from_form(request, settings)
    body = await read_nonempty_body(request.receive)
    if kind == JSON:
        parse = asyncio.to_thread(_from_json, body) if len(body) > OFFLOAD_BYTES else None
        images = await parse if parse else _from_json(body)
        if len(images) > settings.max_images:
            raise HTTPException(422, f"images: too many ({len(images)}); send at most {settings.max_images}")
        return images
    return [body]


async def read_nonempty_body(receive: Receive) -> bytes:
    """Read the whole body. Raises HTTPException 400 if it is empty, 413 if it is too large."""
    body = await read_body(receive)
    if not body:
        raise HTTPException(400, "the body is empty; send the bytes of an image")
    return body


async def read_body(receive: Receive) -> bytes:
    """Read the whole body. Raises ClientDisconnect, or HTTPException 413 if it is too large (middleware)."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _from_json(body: bytes) -> list[bytes]:
    if body.count(b",") > MAX_JSON_COMMAS:  # base64 has none; parsing many values would need much memory
        raise HTTPException(422, 'the body: too many values; send {"images": [...]}, each in base64')
    try:
        encoded = Encoded.model_validate_json(utf8_json(body))
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise HTTPException(400, mistake_in_json(body) or errors[0]["msg"]) from None
        raise HTTPException(422, "; ".join(map(_error_line, errors[:MAX_REPORTED_ERRORS]))) from None
    return encoded.images


def utf8_json(body: bytes) -> bytes:
    """A JSON body without its byte order mark. Raises HTTPException 400 for UTF-16 and UTF-32."""
    encoding = json.detect_encoding(body[:8])
    start = body[:8].decode(encoding, "replace").lstrip("\ufeff")
    if not encoding.startswith("utf-8") and start[:1] in ("{", "["):
        raise HTTPException(400, f"the JSON is encoded in {encoding.upper()}; send it in UTF-8")
    return body.removeprefix(codecs.BOM_UTF8)


def _error_line(error: Any) -> str:
    location = ".".join(str(one)[:40] for one in error["loc"]) or "the body"
    return f"{location}: {validation_reason(error['msg'])}"


async def _from_form(request: Request, settings: Settings) -> list[bytes]:
    start = b""

    async def stream() -> AsyncGenerator[bytes, None]:
        nonlocal start
        async for part in request.stream():
            start += part[: _BOUNDARY_BYTES - len(start)]
            yield part

    form = _Form(request.headers, stream(), max_files=settings.max_images, max_fields=settings.max_images)
    form.spool_max_size = settings.max_body_bytes  # keep it in memory: write no part of a request to disk
    try:
        parts = (await form.parse()).multi_items()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise HTTPException(422, f"multipart: too many parts; send at most {settings.max_images}") from None
        advice = _boundary_mistake(request.headers["content-type"], start)
        raise HTTPException(400, f"multipart: {advice or error.message}") from None
    except UnicodeError:
        raise HTTPException(400, "multipart: a name does not match the declared charset; use utf-8") from None
    if not form.is_complete:
        advice = _boundary_mistake(request.headers["content-type"], start)
        raise HTTPException(400, f"multipart: {advice or 'the body ends before its last boundary'}")
    if not parts:
        raise HTTPException(400, f"the form is empty; send images as files in the field '{IMAGE_FIELD}'")
    return [await _read_file(name, part) for name, part in parts]


def _boundary_mistake(content_type: str, start: bytes) -> str:
    """The mistake in the boundary of a form, or "". start: the first bytes of the body."""
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    library = "let the client library set Content-Type"
    if not boundary:
        return f"Content-Type has no boundary; {library}"
    if not start.lstrip(b"\r\n").startswith(b"--" + boundary):
        text = boundary.decode("latin-1")
        return f"the body does not start with the boundary '{text[:70]}' of its Content-Type; {library}"
    return ""


async def _read_file(name: str, part: UploadFile | str) -> bytes:
    if name != IMAGE_FIELD or isinstance(part, str):
        found = "this field is text; " if isinstance(part, str) else ""
        raise HTTPException(
            422,
            f"form field '{name[:_NAME_CHARS]}': {found}send images as files in the field '{IMAGE_FIELD}', "
            f"as curl --form {IMAGE_FIELD}=@FILE does",
        )
    return await part.read()
