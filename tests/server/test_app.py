import base64
import json
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, get_args

import fastapi.openapi.models
import httpx
import numpy as np
import pydantic
import pytest
import torch
from http_asserts import answer, by_class, by_one, form, refused, untimed
from PIL import Image

import server.schema.classify
from server.web.connection import MAX_BUFFERED_BYTES
from student.bundle.bundle import Bundle
from student.model.student import FUSIONS
from teacher_cache.rng import generator

Picture = dict[str, bytes]


def test_every_image_type_gets_exactly_the_bundle_predictions(
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


def test_answer_does_not_depend_on_concurrent_images(client: httpx.Client, pictures: Picture) -> None:
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


def test_one_bad_image_does_not_fail_the_other_images(
    client: httpx.Client, pictures: Picture, vast: Callable[[int, int], bytes]
) -> None:
    good = pictures["jpeg"]
    response = client.post("/v1/classify", files=form([b"rubbish", good, b"", vast(8000, 8000), good]))
    assert response.status_code == 200
    entries = response.json()["images"]
    assert [entry.get("status") for entry in entries] == [400, None, 400, 413, None]
    assert [untimed(entries[1]), untimed(entries[4])] == [untimed(answer(client, good))] * 2
    refused(client.post("/v1/classify", files=form([b"rubbish"])), 400, len(b"rubbish"), "JPEG")
    refused(client.post("/v1/classify", content=b'{"images": []}'), 400, "Content-Type", "application/json")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/jpeg", ""])
def test_content_type_does_not_matter(client: httpx.Client, pictures: Picture, kind: str) -> None:
    response = client.post("/v1/classify", content=pictures["png"], headers={"content-type": kind})
    assert untimed(response.json()["images"][0]) == untimed(answer(client, pictures["png"]))


def test_answer_uses_the_requested_head_and_fusion(
    client: httpx.Client, bundle: Bundle, pictures: Picture
) -> None:
    image = pictures["webp"]
    pixels = torch.from_numpy(bundle.prepare(image))[None]
    assert by_class(answer(client, image, head="class")) == bundle.predict(pixels).class_[0].tolist()
    assert by_class(answer(client, image, head="distill")) == bundle.predict(pixels).distill[0].tolist()
    for fusion in FUSIONS:
        assert by_class(answer(client, image, fusion=fusion)) == bundle.predict(pixels, fusion).fused[0].tolist()


def test_top_k_is_sorted_and_limited_to_the_class_count(client: httpx.Client, pictures: Picture) -> None:
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


def test_one_headed_model_answers_with_its_class_head(client: httpx.Client, pictures: Picture) -> None:
    entry = by_one(client, pictures["jpeg"])
    assert entry["agree"] is None
    assert untimed(entry) == untimed(by_one(client, pictures["jpeg"], head="class"))
    assert untimed(entry) == untimed(by_one(client, pictures["jpeg"], fusion="class", version="7"))
    for query in ({"head": "distill"}, {"head": "all"}, {"fusion": "softmax-sum"}, {"fusion": "distill"}):
        response = client.post("/v1/classify", content=pictures["jpeg"], params={"model": "one", **query})
        refused(response, 422, *query.keys(), *query.values())


def test_models_are_selected_by_name_and_version(client: httpx.Client, pictures: Picture) -> None:
    first, second = client.get("/v1/models").json()
    assert (second["name"], second["version"], second["network"]) == ("one", "7", "deit_tiny_patch16_224")
    assert first["version"] == first["sha256"][:8]
    for model in (first, second):
        query = {"model": model["name"], "version": model["version"]}
        body = client.post("/v1/classify", content=pictures["jpeg"], params=query).json()
        assert {name: body[name] for name in query} == query
    for query, unknown in (({"model": "other"}, "other"), ({"version": "v9"}, "v9")):
        response = client.post("/v1/classify", content=pictures["jpeg"], params=query)
        refused(response, 404, unknown, first["name"], second["name"])
        refused(client.get("/v1/model", params={"name": "other"}), 404, "other")


def test_base64_json_and_raw_bytes_get_equal_answers(client: httpx.Client, pictures: Picture) -> None:
    images = [pictures["jpeg"], pictures["png"], b"rubbish"]
    body = {"images": [base64.b64encode(image).decode() for image in images]}
    entries = client.post("/v1/classify", json=body).json()["images"]
    assert [untimed(entry) for entry in entries[:2]] == [untimed(answer(client, image)) for image in images[:2]]
    assert entries[2]["status"] == 400


@pytest.mark.parametrize("side", [64, 400])
def test_body_size_and_chunking_do_not_change_the_answer(client: httpx.Client, bundle: Bundle, side: int) -> None:
    file = BytesIO()
    Image.fromarray(generator("body").integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    image = file.getvalue()
    assert (len(image) > MAX_BUFFERED_BYTES) == (side > 64)
    expected = bundle.predict(torch.from_numpy(bundle.prepare(image))[None]).fused[0].tolist()
    pieces = [image[start : start + 30_000] for start in range(0, len(image), 30_000)]
    for content in (image, iter(pieces)):
        response = client.post("/v1/classify", content=content)
        assert by_class(response.json()["images"][0]) == expected


def test_model_card_and_probes_report_the_bundle(client: httpx.Client, bundle: Bundle) -> None:
    card = client.get("/v1/model").json()
    assert card["sha256"] == bundle.card.sha256
    assert (card["classes"], card["size"], card["fusion"]) == (["cat", "dog", "owl"], 32, "softmax-sum")
    assert card["accuracy"] == {"class": 33.3, "distill": 33.3}
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ok"
    assert ready["workers"] == ready["of"] >= 2


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/model", "/v2/health/ready", "/v1/classify"])
def test_head_request_returns_get_headers_without_a_body(client: httpx.Client, path: str) -> None:
    asked, whole = client.head(path), client.get(path)
    assert asked.status_code == whole.status_code and asked.content == b""
    assert asked.headers["content-length"] == whole.headers["content-length"] != "0"


def test_openapi_document_and_its_examples_are_valid(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    fastapi.openapi.models.OpenAPI.model_validate(document)
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(schemas)
    assert {"multipart/form-data", "image/*", "application/json"} <= set(
        document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    )
    for name in ("Answers", "Answer", "Fault", "ModelCard", "Problem", "Readiness", "Status"):
        model: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(getattr(server.schema.classify, name))
        for example in schemas[name]["examples"]:
            assert model.dump_python(model.validate_python(example), mode="json") == example
    encoded = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    server.schema.classify.Encoded.model_validate(encoded["examples"][0])
    assert get_args(server.schema.classify.FusionName) == FUSIONS
