"""The images in a request's body: raw, as a form, or in JSON. The gate has seen to it that it is not too large."""

import asyncio
from typing import Any

import pydantic
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.schema.classify import FIELD, Encoded
from server.settings import Settings
from teacher_cache.errors import validation_reason

FORM, JSON = "multipart/form-data", "application/json"
MOST_FAULTS = 3
"""Of a JSON body, that are told of."""
MOST_COMMAS = 10_000
"""Of a JSON body: more than there is room for among the images of any request."""
LONG_BYTES = 200_000
"""JSON longer than this is read in a thread, so that it holds up no other request."""


class _Form(MultiPartParser):
    ended = False

    def on_end(self) -> None:
        self.ended = True  # Starlette would take a form that was cut short for a whole one


def kind_of(content_type: str) -> str:
    """The type of a body, less its parameters."""
    return content_type.partition(";")[0].strip().lower()


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """The images of a body. Raises HTTPException 400, 413 or 422."""
    kind = kind_of(request.headers.get("content-type", ""))
    if kind == FORM:
        return await _from_form(request, settings)
    body = await read_one(request.receive)
    if kind == JSON:
        parse = asyncio.to_thread(_from_json, body) if len(body) > LONG_BYTES else None
        images = await parse if parse else _from_json(body)
        if len(images) > settings.max_images:
            raise HTTPException(422, f"images: {len(images)} are too many; send at most {settings.max_images}")
        return images
    return [body]


async def read_one(receive: Receive) -> bytes:
    """A body that must not be empty. Raises HTTPException 400 or, by the gate, 413."""
    body = await read_body(receive)
    if not body:
        raise HTTPException(400, "the body is empty; send the bytes of an image")
    return body


async def read_body(receive: Receive) -> bytes:
    """The whole body; the gate raises HTTPException 413 for one that is too large."""
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
    if body.count(b",") > MOST_COMMAS:  # base64 has none; each value costs far more memory than its letters
        raise HTTPException(422, 'the body: too many values; send {"images": [...]}, each in base64')
    try:
        encoded = Encoded.model_validate_json(body)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise HTTPException(400, found[0]["msg"]) from None
        raise HTTPException(422, "; ".join(map(_line, found[:MOST_FAULTS]))) from None
    return encoded.images


def _line(part: Any) -> str:
    where = ".".join(str(one)[:40] for one in part["loc"]) or "the body"
    return f"{where}: {validation_reason(part['msg'])}"


async def _from_form(request: Request, settings: Settings) -> list[bytes]:
    form = _Form(request.headers, request.stream(), max_files=settings.max_images, max_fields=settings.max_images)
    form.spool_max_size = settings.max_body_bytes  # in memory: nothing of a request is left on disk
    try:
        parts = (await form.parse()).multi_items()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise HTTPException(422, f"the form has too many parts; send at most {settings.max_images}") from None
        raise HTTPException(400, f"multipart: {error.message}") from None
    except UnicodeError:
        raise HTTPException(400, "multipart: a name in it is not of the charset that it says; use utf-8") from None
    if not form.ended:
        raise HTTPException(400, "multipart: the body ends before its last boundary")
    if not parts:
        raise HTTPException(400, f"the form is empty; send images as files in the field '{FIELD}'")
    return [await _file(name, part) for name, part in parts]


async def _file(name: str, part: UploadFile | str) -> bytes:
    if name != FIELD or isinstance(part, str):
        raise HTTPException(422, f"form field '{name}': send images as files in the field '{FIELD}'")
    return await part.read()
