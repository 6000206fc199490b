import re
from base64 import b64decode
from io import BytesIO
from typing import Any, get_args

import cv2
import httpx
import numpy as np
import pytest
import torch
from http_asserts import refused
from PIL import Image

from server.ipc.messages import MethodName, Task
from server.workers.attention_maps import MIN_SIDE, TASKS, draw_maps
from student.bundle.bundle import Bundle
from student.model.attention import Method, attention_maps


def opened(png: str) -> Image.Image:
    image = Image.open(BytesIO(b64decode(png)))
    image.load()
    assert image.format == "PNG"
    return image


def explained(client: httpx.Client, image: bytes, **query: str) -> dict[str, Any]:
    response = client.post("/v1/explain", content=image, params={"format": "json"} | query)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_server_and_student_have_the_same_method_names() -> None:
    assert get_args(MethodName) == get_args(Method) == tuple(TASKS)


@pytest.mark.parametrize("method", get_args(Method))
def test_peak_and_half_match_the_attention_maps(
    client: httpx.Client, bundle: Bundle, pictures: dict[str, bytes], method: Method
) -> None:
    answer = explained(client, pictures["jpeg"], method=method)
    prepared = torch.from_numpy(bundle.prepare(pictures["jpeg"]))[None].permute(0, 3, 1, 2)
    maps = attention_maps(bundle.student, prepared, method)[0].numpy()
    assert list(answer["tokens"]) == ["class", "distill"]
    assert answer["method"] == method
    for one, token in zip(maps, answer["tokens"].values(), strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        assert token["peak"] == [(column + 0.5) / 4, (row + 0.5) / 4]
        kept = round(token["half"] * one.size)
        falling = np.sort(one, axis=None)[::-1]
        assert falling[: kept - 1].sum() < 0.5 <= falling[:kept].sum() + 1e-6


def test_seen_image_is_the_network_input(client: httpx.Client, bundle: Bundle, pictures: dict[str, bytes]) -> None:
    seen = np.asarray(opened(explained(client, pictures["jpeg"])["seen"]))
    scale = MIN_SIDE // bundle.card.eval.size
    assert seen.shape == (MIN_SIDE, MIN_SIDE, 3)
    assert np.array_equal(seen[::scale, ::scale], bundle.prepare(pictures["jpeg"]))


def test_map_is_brightest_at_the_attention_peak(bundle: Bundle, pictures: dict[str, bytes]) -> None:
    gray = np.full_like(bundle.prepare(pictures["jpeg"]), 128)
    maps = draw_maps("last-layer", bundle, gray, Task(gray, kind="last-layer"))
    for token in maps.tokens.values():
        picture = cv2.imdecode(np.frombuffer(token.png, np.uint8), cv2.IMREAD_GRAYSCALE)
        bright = cv2.resize(picture, (4, 4), interpolation=cv2.INTER_AREA)
        row, column = np.unravel_index(bright.argmax(), bright.shape)
        assert token.peak == ((column + 0.5) / 4, (row + 0.5) / 4)


def test_png_answer_contains_the_seen_image_and_both_maps(
    client: httpx.Client, pictures: dict[str, bytes]
) -> None:
    response = client.post("/v1/explain", content=pictures["jpeg"])
    assert response.headers["content-type"] == "image/png"
    sheet = np.asarray(Image.open(BytesIO(response.content)))
    answer = explained(client, pictures["jpeg"])
    parts = [answer["seen"], *(token["png"] for token in answer["tokens"].values())]
    step = (sheet.shape[1] - MIN_SIDE) // 2
    for number, part in enumerate(parts):
        column = sheet[:, number * step :][:, :MIN_SIDE]
        assert np.array_equal(column[:MIN_SIDE], np.asarray(opened(part)))
        assert (column[MIN_SIDE:] < 100).any()  # a caption


def test_form_with_one_image_equals_raw_bytes_and_two_images_are_422(
    client: httpx.Client, pictures: dict[str, bytes]
) -> None:
    whole = client.post("/v1/explain", content=pictures["png"])
    form = client.post("/v1/explain", files={"image": pictures["png"]})
    assert form.content == whole.content
    two = client.post("/v1/explain", files=[("image", pictures["png"])] * 2)
    refused(two, 422, 2)


def test_errors_equal_those_of_classify(client: httpx.Client, pictures: dict[str, bytes], vast: Any) -> None:
    bad: list[tuple[int, bytes, dict[str, str]]] = [
        (400, b"", {}),
        (400, b"no image", {}),
        (413, vast(60_000, 60_000), {}),
        (415, b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}),
        (404, pictures["jpeg"], {"model": "none"}),
        (422, pictures["jpeg"], {"method": "guess"}),
        (422, pictures["jpeg"], {"top_k": "3"}),
    ]
    for status, image, query in bad:
        response = client.post("/v1/explain", content=image, params=query)
        assert response.status_code == status, response.text
        assert list(response.json()) == ["detail"]
        assert not re.search(r"Traceback|\.py|/tmp/", response.text)
