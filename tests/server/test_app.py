import base64
import json
import random
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, get_args

import fastapi.openapi.models
import httpx
import numpy as np
import pydantic
import pytest
import torch
from PIL import Image

import server.schema
from server.connection import WHOLE_BYTES
from student.bundle import Bundle
from student.model import FUSIONS
from teacher_cache.dice import dice

Picture = dict[str, bytes]


def by_one(client: httpx.Client, image: bytes, **query: object) -> dict[str, Any]:
    return answer(client, image, model="one", **query)


def answer(client: httpx.Client, image: bytes, **query: object) -> dict[str, Any]:
    """The one entry of a raw request that must succeed."""
    response = client.post("/v1/classify", content=image, params=query)
    assert response.status_code == 200, response.text
    (entry,) = response.json()["images"]
    return entry


def untimed(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not name.endswith("_ms")}


def form(images: list[bytes], field: str = "image") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, ("picture", image)) for image in images]


def by_class(verdict: dict[str, Any]) -> list[float]:
    return [score["probability"] for score in sorted(verdict["top_k"], key=lambda score: score["index"])]


def refused(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    detail = response.json()["detail"]
    assert re.search(words, detail), detail
    assert "\n" not in detail
    assert not re.search(r"Traceback|\.py|/\w+/|0x[0-9a-f]+", detail)


def test_every_kind_of_image_is_answered_exactly_as_the_bundle_does(
    client: httpx.Client, bundle: Bundle, pictures: Picture
) -> None:
    for name, image in pictures.items():
        expected = bundle.predict(torch.from_numpy(bundle.prepare(image))[None])
        entry = answer(client, image, head="all")
        assert by_class(entry) == expected.fused[0].tolist(), name
        assert by_class(entry["heads"]["joint"]) == expected.fused[0].tolist(), name
        assert by_class(entry["heads"]["class"]) == expected.class_[0].tolist(), name
        assert by_class(entry["heads"]["distill"]) == expected.distill[0].tolist(), name
        assert entry["agree"] == (expected.class_.argmax() == expected.distill.argmax()).item(), name


def test_an_answer_does_not_depend_on_what_is_beside_it(client: httpx.Client, pictures: Picture) -> None:
    expected = {image: untimed(answer(client, image)) for image in pictures.values()}
    order = [*pictures.values()] * 3 + [b"rubbish"] * 20
    random.Random(0).shuffle(order)

    def ask(image: bytes) -> bool:
        response = client.post("/v1/classify", content=image)
        if image not in expected:
            return response.status_code == 400
        return untimed(response.json()["images"][0]) == expected[image]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, order))
    beside = client.post("/v1/classify", files=form([*expected])).json()["images"]
    assert [untimed(entry) for entry in beside] == list(expected.values())


def test_a_bad_image_among_several_has_its_own_fault(
    client: httpx.Client, pictures: Picture, vast: Callable[[int, int], bytes]
) -> None:
    good = pictures["jpeg"]
    response = client.post("/v1/classify", files=form([b"rubbish", good, b"", vast(8000, 8000), good]))
    assert response.status_code == 200
    entries = response.json()["images"]
    assert [entry.get("status") for entry in entries] == [400, None, 400, 413, None]
    assert [untimed(entries[1]), untimed(entries[4])] == [untimed(answer(client, good))] * 2
    refused(client.post("/v1/classify", files=form([b"rubbish"])), 400, "not an image")
    refused(
        client.post("/v1/classify", content=b'{"images": []}'),
        400,
        "send it with 'Content-Type",
    )


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/jpeg", ""])
def test_content_type_does_not_matter(client: httpx.Client, pictures: Picture, kind: str) -> None:
    response = client.post("/v1/classify", content=pictures["png"], headers={"content-type": kind})
    assert untimed(response.json()["images"][0]) == untimed(answer(client, pictures["png"]))


def test_verdict_is_of_the_head_and_fusion_asked_for(
    client: httpx.Client, bundle: Bundle, pictures: Picture
) -> None:
    image = pictures["webp"]
    pixels = torch.from_numpy(bundle.prepare(image))[None]
    assert by_class(answer(client, image, head="class")) == bundle.predict(pixels).class_[0].tolist()
    assert by_class(answer(client, image, head="distill")) == bundle.predict(pixels).distill[0].tolist()
    for fusion in FUSIONS:
        assert by_class(answer(client, image, fusion=fusion)) == bundle.predict(pixels, fusion).fused[0].tolist()


def test_top_k_lists_the_likeliest_first_and_at_most_all(client: httpx.Client, pictures: Picture) -> None:
    whole = answer(client, pictures["jpeg"], top_k=100)
    assert len(whole["top_k"]) == 3
    assert [score["probability"] for score in whole["top_k"]] == sorted(by_class(whole), reverse=True)
    assert answer(client, pictures["jpeg"], top_k=1)["top_k"] == whole["top_k"][:1]
    assert {name: whole[name] for name in ("label", "index", "probability")} == whole["top_k"][0]
    assert whole["label"] == ("cat", "dog", "owl")[whole["index"]]


def test_answer_names_model_head_and_fusion(client: httpx.Client, pictures: Picture) -> None:
    def head(**query: str) -> list[Any]:
        body = client.post("/v1/classify", content=pictures["gif"], params=query).json()
        return [body["model"], body["head"], body["fusion"], sorted(body["images"][0]["heads"])]

    model, both = "deit_tiny_distilled_patch16_224", ["class", "distill", "joint"]
    assert head() == [model, "joint", "softmax-sum", []]
    assert head(head="class") == [model, "class", None, []]
    assert head(head="all", fusion="logit-mean") == [model, "all", "logit-mean", both]


def test_rubbish_and_truncated_images_are_400(client: httpx.Client, pictures: Picture) -> None:
    refused(client.post("/v1/classify", content=b""), 400, "empty")
    refused(client.post("/v1/classify", content=b"\0" * 1000), 400, "not an image")
    for name in ("jpeg", "cmyk jpeg", "png", "gif", "webp", "tiff", "bmp"):
        image = pictures[name]
        for length in (3, 30, len(image) * 2 // 3):
            response = client.post("/v1/classify", content=image[:length])
            refused(response, 400, "not an image|header is cut short|truncated")


def test_a_body_too_large_is_413_before_it_is_read(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
        raw.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 20000001\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=b"])
def test_a_body_that_grows_too_large_is_413_while_it_is_read(client: httpx.Client, kind: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(21):
            yield b"\0" * 1_000_000

    response = client.post("/v1/classify", content=endless(), headers={"content-type": kind})
    refused(response, 413, "at most 20,000,000 bytes")


def test_too_many_pixels_are_413(client: httpx.Client, vast: Callable[[int, int], bytes]) -> None:
    refused(client.post("/v1/classify", content=vast(8000, 8000)), 413, "8000 x 8000")
    refused(client.post("/v1/classify", content=vast(50_000, 50_000)), 413, "too many pixels")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"top_k": "0"}, "top_k: .*greater"),
        ({"top_k": "many"}, "top_k: .*integer"),
        ({"head": "both"}, "head: .*'joint', 'class', 'distill' or 'all'"),
        ({"fusion": "sum"}, "fusion: .*'softmax-sum'"),
        ({"topk": "3"}, "topk: "),
        ({"head": "class", "fusion": "logit-mean"}, "head=class is not fused"),
    ],
)
def test_bad_query_is_422(client: httpx.Client, pictures: Picture, query: dict[str, str], words: str) -> None:
    refused(client.post("/v1/classify", content=pictures["jpeg"], params=query), 422, words)


def test_bad_form_is_refused(client: httpx.Client, pictures: Picture) -> None:
    image = pictures["jpeg"]
    refused(client.post("/v1/classify", files=form([image], "file")), 422, "'file'.*'image'")
    refused(client.post("/v1/classify", files=form([image] * 65)), 400, "64")
    whole = httpx.Request("POST", "http://x", files=form([image, image]))
    kind = {"content-type": whole.headers["content-type"]}
    half = whole.read()[:-200]
    refused(client.post("/v1/classify", content=half, headers=kind), 400, "before its last boundary")
    no_file = {"content-type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--b--\r\n'
    refused(client.post("/v1/classify", content=body, headers=no_file), 422, "as files")
    refused(client.post("/v1/classify", content=b"--b--\r\n", headers=no_file), 400, "empty")
    refused(client.post("/v1/classify", content=b"?", headers=no_file), 400, "multipart")
    for kind in ({"content-type": "multipart/form-data"}, {"content-type": "multipart/form-data; boundary="}):
        refused(client.post("/v1/classify", content=body, headers=kind), 400, "multipart")


def test_one_headed_model_answers_by_its_one_head(client: httpx.Client, pictures: Picture) -> None:
    entry = by_one(client, pictures["jpeg"])
    assert entry["agree"] is None
    assert untimed(entry) == untimed(by_one(client, pictures["jpeg"], head="class"))
    assert untimed(entry) == untimed(by_one(client, pictures["jpeg"], fusion="class", version="7"))
    for query in ({"head": "distill"}, {"head": "all"}, {"fusion": "softmax-sum"}, {"fusion": "distill"}):
        response = client.post("/v1/classify", content=pictures["jpeg"], params={"model": "one", **query})
        refused(response, 422, "one head|no distill")


def test_models_are_asked_by_name_and_version(client: httpx.Client, pictures: Picture) -> None:
    first, second = client.get("/v1/models").json()
    assert (second["name"], second["version"], second["network"]) == ("one", "7", "deit_tiny_patch16_224")
    assert first["version"] == first["sha256"][:8]
    for model in (first, second):
        query = {"model": model["name"], "version": model["version"]}
        body = client.post("/v1/classify", content=pictures["jpeg"], params=query).json()
        assert {name: body[name] for name in query} == query
    for query, words in (({"model": "other"}, "no model 'other'.*one"), ({"version": "9"}, "version '9'")):
        refused(client.post("/v1/classify", content=pictures["jpeg"], params=query), 404, words)
        refused(client.get("/v1/model", params={"name": "other"}), 404, "other")


def test_json_with_base64_answers_as_the_bytes_do(client: httpx.Client, pictures: Picture) -> None:
    images = [pictures["jpeg"], pictures["png"], b"rubbish"]
    body = {"images": [base64.b64encode(image).decode() for image in images]}
    entries = client.post("/v1/classify", json=body).json()["images"]
    assert [untimed(entry) for entry in entries[:2]] == [untimed(answer(client, image)) for image in images[:2]]
    assert entries[2]["status"] == 400


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"images": [', 400, "JSON"),
        (b"\xff\xd8", 400, "JSON"),
        (b"{}", 422, "images: Field required"),
        (b'{"images": []}', 422, "images: .*at least 1"),
        (b'{"images": ["?"]}', 422, r"images\.0: should be base64"),
        (b'{"images": [3]}', 422, r"images\.0: should be a string"),
        (b'{"images": ["aa=="], "url": "http://x"}', 422, "url: "),
        (b'{"images": [' + b'"",' * 64 + b'""]}', 422, "at most 64"),
    ],
)
def test_bad_json_is_refused(client: httpx.Client, body: bytes, status: int, words: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    refused(client.post("/v1/classify", content=body, headers=headers), status, words)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!--" + bytes(5000) + b"--><svg xmlns='http://www.w3.org/2000/svg'/>", "XML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_types_that_are_not_taken_are_415(client: httpx.Client, image: bytes, kind: str) -> None:
    refused(client.post("/v1/classify", content=image), 415, f"{kind} images are not taken; send JPEG")


@pytest.mark.parametrize("side", [64, 400])
def test_a_body_short_or_long_whole_or_in_chunks_is_answered_alike(
    client: httpx.Client, bundle: Bundle, side: int
) -> None:
    file = BytesIO()
    Image.fromarray(dice("body").integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    image = file.getvalue()
    assert (len(image) > WHOLE_BYTES) == (side > 64)
    expected = bundle.predict(torch.from_numpy(bundle.prepare(image))[None]).fused[0].tolist()
    pieces = [image[start : start + 30_000] for start in range(0, len(image), 30_000)]
    for content in (image, iter(pieces)):
        response = client.post("/v1/classify", content=content)
        assert by_class(response.json()["images"][0]) == expected


@pytest.mark.parametrize(
    "query",
    [{"top_k": "0"}, {"k": "1"}, {"head": "tail"}, {"model": "none"}, {"head": "class", "fusion": "class"}],
)
def test_an_image_as_it_is_and_one_in_a_form_are_refused_alike(
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


def test_model_card_and_probes(client: httpx.Client, bundle: Bundle) -> None:
    card = client.get("/v1/model").json()
    assert card["sha256"] == bundle.card.sha256
    assert (card["classes"], card["size"], card["fusion"]) == (["cat", "dog", "owl"], 32, "softmax-sum")
    assert card["accuracy"] == {"class": 33.3, "distill": 33.3}
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ok"
    assert ready["workers"] == ready["of"] >= 2


def test_a_request_that_fits_no_route_is_told_what_would(client: httpx.Client) -> None:
    refused(client.get("/docs"), 404, "^there is no such path; /openapi.json lists those there are$")
    asked = client.get("/v1/classify")
    refused(asked, 405, "^GET is not answered here; use POST$")
    assert asked.headers["allow"] == "POST"
    refused(client.delete("/v1/model"), 405, "^DELETE is not answered here; use GET$")
    assert client.get("/v2/none").json() == {"error": "there is no such path; /openapi.json lists those there are"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/model", "/v2/health/ready", "/v1/classify"])
def test_head_is_answered_as_get_less_the_body(client: httpx.Client, path: str) -> None:
    asked, whole = client.head(path), client.get(path)
    assert asked.status_code == whole.status_code and asked.content == b""
    assert asked.headers["content-length"] == whole.headers["content-length"] != "0"


def test_openapi_document_is_valid_and_its_examples_true(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    fastapi.openapi.models.OpenAPI.model_validate(document)
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(schemas)
    assert {"multipart/form-data", "image/*", "application/json"} <= set(
        document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    )
    for name in ("Answers", "Answer", "Fault", "ModelCard", "Problem", "Readiness", "Status"):
        model: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(getattr(server.schema, name))
        for example in schemas[name]["examples"]:
            assert model.dump_python(model.validate_python(example), mode="json") == example
    encoded = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    server.schema.Encoded.model_validate(encoded["examples"][0])
    assert get_args(server.schema.FusionName) == FUSIONS
