import re
import socket
from collections.abc import Callable, Iterator
from io import BytesIO

import httpx
import numpy as np
import pytest
from facts import assert_facts
from http_asserts import form, refused
from PIL import Image

from student.model.student import FUSIONS
from teacher_cache.errors import ImageError
from teacher_cache.views.decode import decode

Picture = dict[str, bytes]


def test_invalid_and_truncated_images_are_400(client: httpx.Client, pictures: Picture) -> None:
    refused(client.post("/v1/classify", content=b""), 400)
    refused(client.post("/v1/classify", content=b"\0" * 1000), 400, 1000, "JPEG")
    for name in ("jpeg", "cmyk jpeg", "png", "gif", "webp", "tiff", "bmp"):
        image = pictures[name]
        for length in (3, 30, len(image) * 2 // 3):
            response = client.post("/v1/classify", content=image[:length])
            refused(response, 400)


def test_too_large_body_is_413_before_it_is_read(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
        raw.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 20000001\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=b"])
def test_chunked_body_over_the_limit_is_413(client: httpx.Client, kind: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(21):
            yield b"\0" * 1_000_000

    response = client.post("/v1/classify", content=endless(), headers={"content-type": kind})
    refused(response, 413, "20,000,000")


def test_too_many_pixels_are_413(client: httpx.Client, vast: Callable[[int, int], bytes]) -> None:
    refused(client.post("/v1/classify", content=vast(8000, 7000)), 413, 8000, 7000, "50,000,000")
    refused(client.post("/v1/classify", content=vast(50_000, 50_000)), 413)


@pytest.mark.parametrize(
    ("query", "facts"),
    [
        ({"top_k": "0"}, ("top_k", 0, 1)),
        ({"top_k": "many"}, ("top_k", "many", "integer")),
        ({"head": "both"}, ("head", "both", "joint", "class", "distill", "all")),
        ({"fusion": "product"}, ("fusion", "product", *FUSIONS)),
        ({"topk": "3"}, ("topk", "top_k")),
        ({"head": "class", "fusion": "logit-mean"}, ("head", "class", "fusion", "logit-mean", "joint")),
    ],
)
def test_bad_query_is_422(
    client: httpx.Client, pictures: Picture, query: dict[str, str], facts: tuple[object, ...]
) -> None:
    refused(client.post("/v1/classify", content=pictures["jpeg"], params=query), 422, *facts)


def test_bad_form_is_refused(client: httpx.Client, pictures: Picture) -> None:
    image = pictures["jpeg"]
    refused(client.post("/v1/classify", files=form([image], "photo")), 422, "photo", "image")
    refused(client.post("/v1/classify", files=form([image] * 65)), 422, 64)
    whole = httpx.Request("POST", "http://x", files=form([image, image]))
    kind = {"content-type": whole.headers["content-type"]}
    half = whole.read()[:-200]
    refused(client.post("/v1/classify", content=half, headers=kind), 400, "multipart", "boundary")
    no_file = {"content-type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--b--\r\n'
    refused(client.post("/v1/classify", content=body, headers=no_file), 422, "image")
    refused(client.post("/v1/classify", content=b"--b--\r\n", headers=no_file), 400, "image")
    refused(client.post("/v1/classify", content=b"?", headers=no_file), 400, "multipart")
    for kind in ({"content-type": "multipart/form-data"}, {"content-type": "multipart/form-data; boundary="}):
        refused(client.post("/v1/classify", content=body, headers=kind), 400, "multipart")


@pytest.mark.parametrize(
    ("body", "status", "facts"),
    [
        (b'{"images": [', 400, ("JSON",)),
        (b"\xff\xd8", 400, ("JSON",)),
        (b"{}", 422, ("images",)),
        (b'{"images": []}', 422, ("images", 1)),
        (b'{"images": ["?"]}', 422, ("images.0", "base64")),
        (b'{"images": [3]}', 422, ("images.0", "string")),
        (b'{"images": ["aa=="], "url": "http://x"}', 422, ("url",)),
        (b'{"images": [' + b'"",' * 64 + b'""]}', 422, ("images", 64)),
    ],
)
def test_bad_json_is_refused(client: httpx.Client, body: bytes, status: int, facts: tuple[object, ...]) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    refused(client.post("/v1/classify", content=body, headers=headers), status, *facts)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!--" + bytes(5000) + b"--><svg xmlns='http://www.w3.org/2000/svg'/>", "XML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_unsupported_image_types_are_415(client: httpx.Client, image: bytes, kind: str) -> None:
    refused(client.post("/v1/classify", content=image), 415, kind, "JPEG")


def test_pixels_of_an_uncertain_range_are_400(client: httpx.Client) -> None:
    """The reason is that of `limbeck pack`."""
    file = BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(file, "PNG")
    with pytest.raises(ImageError) as caught:
        decode(file.getvalue())
    refused(client.post("/v1/classify", content=file.getvalue()), 400, 4095, str(caught.value))


@pytest.mark.parametrize(
    "query",
    [{"top_k": "0"}, {"k": "1"}, {"head": "tail"}, {"model": "none"}, {"head": "class", "fusion": "class"}],
)
def test_raw_image_and_form_get_the_same_error(
    client: httpx.Client, pictures: Picture, query: dict[str, str]
) -> None:
    raw = client.post("/v1/classify", content=pictures["jpeg"], params=query)
    formed = client.post("/v1/classify", files=form([pictures["jpeg"]]), params=query)
    assert (raw.status_code, raw.json()) == (formed.status_code, formed.json())
    assert raw.status_code in (404, 422)


def test_images_that_cannot_be_decoded_are_counted(
    client: httpx.Client, pictures: Picture, vast: Callable[[int, int], bytes]
) -> None:
    def failures() -> float:
        found = re.findall(r"^limbeck_decode_failures_total\{.*\} (\S+)$", client.get("/metrics").text, re.M)
        return sum(map(float, found))

    before = failures()
    bad = [b"rubbish", pictures["jpeg"][:300], b"%PDF-1.7\n", vast(60_000, 60_000), pictures["jpeg"]]
    statuses = [client.post("/v1/classify", content=image).status_code for image in bad]
    assert statuses == [400, 400, 415, 413, 200]
    assert failures() == before + 3


def test_unknown_path_or_method_error_gives_the_valid_ones(client: httpx.Client) -> None:
    refused(client.get("/docs"), 404, "/openapi.json")
    asked = client.get("/v1/classify")
    refused(asked, 405, "GET", "POST")
    assert asked.headers["allow"] == "POST"
    refused(client.delete("/v1/model"), 405, "DELETE", "GET")
    unrouted = client.get("/v2/none").json()
    assert list(unrouted) == ["error"]
    assert_facts(unrouted["error"], "/openapi.json")
