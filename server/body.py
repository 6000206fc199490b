"""The images in a request's body, raw or multipart, and never more of it than the limit."""

from collections.abc import AsyncGenerator

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.settings import Settings

FIELD = "image"


class _Form(MultiPartParser):
    ended = False

    def on_end(self) -> None:
        self.ended = True  # Starlette would take a form that was cut short for a whole one


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """The images of a body, raw or multipart. Raises HTTPException 400, 413 or 422."""
    stream = _limited(request, settings.max_body_bytes)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        body = b"".join([chunk async for chunk in stream])
        if not body:
            raise HTTPException(400, "the body is empty; send the bytes of an image")
        return [body]
    form = _Form(request.headers, stream, max_files=settings.max_images, max_fields=settings.max_images)
    form.spool_max_size = settings.max_body_bytes  # in memory: nothing of a request is left on disk
    try:
        parts = (await form.parse()).multi_items()
    except MultiPartException as error:
        raise HTTPException(400, f"multipart: {error.message}") from None
    if not form.ended:
        raise HTTPException(400, "multipart: the body ends before its last boundary")
    if not parts:
        raise HTTPException(400, f"the form is empty; send images as files in the field '{FIELD}'")
    return [await _file(name, part) for name, part in parts]


async def _file(name: str, part: UploadFile | str) -> bytes:
    if name != FIELD or isinstance(part, str):
        raise HTTPException(422, f"form field '{name}': send images as files in the field '{FIELD}'")
    return await part.read()


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises HTTPException 413 before reading where its declared length tells."""
    too_large = HTTPException(413, f"the body is too large; send at most {limit:,} bytes")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk
