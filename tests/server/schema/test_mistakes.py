"""What a client gets that sends something else than an image: the name of the mistake and the remedy."""

import base64
import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from facts import assert_facts
from http_asserts import answer, form, refused, untimed

Picture = dict[str, bytes]
INFER = "/v2/models/deit_tiny_distilled_patch16_224/infer"
URL_ENCODED = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
TO_TEXT: dict[str, Callable[[bytes], str]] = {
    "standard": lambda image: base64.b64encode(image).decode(),
    "without padding": lambda image: base64.b64encode(image).decode().rstrip("="),
    "URL-safe": lambda image: base64.urlsafe_b64encode(image).decode(),
    "URL-safe without padding": lambda image: base64.urlsafe_b64encode(image).decode().rstrip("="),
    "in lines": lambda image: base64.encodebytes(image).decode(),
    "data URL": lambda image: "data:image/png;base64," + base64.b64encode(image).decode(),
    "data URL with parameters": lambda image: "DATA:;name=a;base64," + base64.b64encode(image).decode(),
    "percent-encoded data URL": lambda image: (
        "data:image/png;base64,"
        + base64.b64encode(image).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    ),
}


def stripped(data: bytes) -> bytes:
    """What `curl -d @FILE` sends of a file."""
    return data.translate(None, b"\0\r\n")


def tensor(text: str, **parameters: str) -> dict[str, Any]:
    return {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text], "parameters": parameters}]
    }


@pytest.mark.parametrize("way", TO_TEXT)
def test_every_form_of_base64_gets_the_answer_of_the_bytes(
    client: httpx.Client, pictures: Picture, way: str
) -> None:
    for image in (pictures["png"], pictures["jpeg"], pictures["one pixel"]):
        text, expected = TO_TEXT[way](image), untimed(answer(client, image))
        (entry,) = client.post("/v1/classify", json={"images": [text]}).json()["images"]
        assert untimed(entry) == expected
        outputs = client.post(INFER, json=tensor(text, content_type="base64")).json()["outputs"]
        assert outputs[-1]["data"] == [expected["label"]]


def test_json_after_a_byte_order_mark_is_read(client: httpx.Client, pictures: Picture) -> None:
    text = base64.b64encode(pictures["png"]).decode()
    body = json.dumps({"images": [text]}).encode("utf-8-sig")
    headers = {"content-type": "Application/JSON; Charset=UTF-8"}
    (entry,) = client.post("/v1/classify", content=body, headers=headers).json()["images"]
    assert untimed(entry) == untimed(answer(client, pictures["png"]))
    body = json.dumps(tensor(text, content_type="base64")).encode("utf-8-sig")
    for headers in ({}, {"Inference-Header-Content-Length": str(len(body))}):
        assert client.post(INFER, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_json_in_another_encoding_is_named(client: httpx.Client, encoding: str) -> None:
    body = json.dumps({"images": ["aaaa"]}).encode(encoding)
    refused(client.post("/v1/classify", content=body, headers=JSON), 400, encoding.upper(), "UTF-8")
    refused_infer = client.post(INFER, content=body)
    assert refused_infer.status_code == 400
    assert_facts(refused_infer.json()["error"], encoding.upper(), "UTF-8")


@pytest.mark.parametrize("name", ["jpeg", "rotated jpeg", "png", "gif", "webp", "tiff", "bmp"])
def test_image_that_curl_d_damaged_is_named(client: httpx.Client, pictures: Picture, name: str) -> None:
    body = stripped(pictures[name])
    response = client.post("/v1/classify", content=body, headers=URL_ENCODED)
    refused(response, 400, len(body), "curl -d", "--data-binary @FILE")
    assert client.post("/v1/explain", content=body, headers=URL_ENCODED).json() == response.json()
    if name in ("jpeg", "png"):
        refused(client.post("/v1/classify", content=body), 400, "curl -d", "--data-binary @FILE")


def test_truncated_upload_has_its_size_and_no_other_cause(client: httpx.Client, pictures: Picture) -> None:
    for name in ("jpeg", "png", "gif", "bmp"):
        for headers in ({}, URL_ENCODED):
            cut = pictures[name][: len(pictures[name]) * 2 // 3]
            response = client.post("/v1/classify", content=cut, headers=headers)
            refused(response, 400, "complete", f"{len(cut):,}")
            assert "curl" not in response.text


MISTAKES = [
    (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    (b"\xef\xbb\xbf\r\n<HTML>", "HTML"),
    (b'{"message": "Not Found"}', "JSON"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"http://example.com/cat.jpg", "URL"),
    (b"s3://bucket/cat\n", "URL"),
    (b"file:///data/cat.jpg", "URL"),
    (b"cat.jpg", "file name"),
    (b"/data/my cats/cat 1.JPEG\n", "file name"),
    (rb"C:\data\cat.png", "file name"),
    (b"@cat.jpg", "--data-binary @FILE"),
    (b"image=@cat.jpg", "--form image=@FILE"),
    (b"=FF=D8=FF=E0=00=10JFIF", "quoted-printable"),
    (b"ffd8ffe000104a46", "hexadecimal"),
    (rb"\x89504e470d0a1a0a", "hexadecimal"),
    (repr(b"\xff\xd8\xff\xe0\0").encode(), "Python"),
    (b"[object File]", "JavaScript"),
    (gzip.compress(b"image"), "gzip"),
    (b"PK\3\4\x14\0", "archive"),
    (b"\x93NUMPY\1\0v\0", "NumPy"),
    (b"\x80\4\x95\x0b\0", "pickle"),
    ("image".encode("utf-16"), "UTF-16"),
    (b"upstream timed out\n", "upstream timed out"),
    ("Größe fehlt".encode(), "Größe"),
    (b"  \n", "white space"),
]


@pytest.mark.parametrize(("body", "fact"), MISTAKES)
def test_what_is_no_image_is_named(client: httpx.Client, body: bytes, fact: str) -> None:
    refused(client.post("/v1/classify", content=body), 400, len(body), fact)
    refused(client.post("/v1/classify", files=form([body])), 400, len(body), fact)
    refused(client.post("/v1/explain", content=body, headers=URL_ENCODED), 400, len(body), fact)
    encoded = base64.b64encode(body).decode()
    refused(client.post("/v1/classify", json={"images": [encoded]}), 400, len(body), fact)
    response = client.post(INFER, json=tensor(encoded, content_type="base64"))
    assert response.status_code == 400
    assert_facts(response.json()["error"], len(body), fact)


def test_error_message_of_an_object_store_is_named(client: httpx.Client) -> None:
    body = b"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>AccessDenied</Code></Error>"
    refused(client.post("/v1/classify", content=body), 415, "XML", len(body))


def test_image_that_was_converted_to_text_is_named(client: httpx.Client, pictures: Picture) -> None:
    for name in ("jpeg", "png"):
        for text in (pictures[name].decode("latin-1"), pictures[name].decode(errors="replace")):
            refused(client.post("/v1/classify", content=text.encode()), 400, "UTF-8", len(text.encode()))
    damaged = pictures["png"].replace(b"\r\n", b"\n")
    refused(client.post("/v1/classify", content=damaged), 400, "PNG", len(damaged))
    response = client.post(INFER, json=tensor(pictures["jpeg"].decode("latin-1")))
    assert_facts(response.json()["error"], "UTF-8")


def test_text_of_an_image_in_the_wrong_place_is_named_with_the_right_one(
    client: httpx.Client, pictures: Picture
) -> None:
    for way in ("standard", "URL-safe", "in lines", "data URL"):
        text, kind = TO_TEXT[way](pictures["jpeg"]), "data URL" if way == "data URL" else "base64"
        for headers in ({}, URL_ENCODED, JSON):
            response = client.post("/v1/classify", content=text.encode(), headers=headers)
            refused(response, 400, kind, '"images"', "Content-Type: application/json")
        refused(client.post("/v1/classify", files=form([text.encode()])), 400, kind)
        response = client.post(INFER, json=tensor(text))
        assert response.status_code == 400
        assert_facts(response.json()["error"], kind, '"parameters": {"content_type": "base64"}')
    twice = base64.b64encode(base64.b64encode(pictures["jpeg"])).decode()
    refused(client.post("/v1/classify", json={"images": [twice]}), 400, "twice")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("https://example.com/cat.jpg", "URL"),
        ("cat.jpg", "file name"),
        (str(base64.b64encode(b"\xff\xd8\xff")), "b64encode(data).decode()"),
        ("data:image/svg+xml,<svg/>", "data URL"),
        ("aaaaa", "base64"),
        ("äöü", "base64"),
        ("a\0a=", "base64"),
    ],
)
def test_text_that_is_not_base64_is_named(client: httpx.Client, text: str, fact: str) -> None:
    refused(client.post("/v1/classify", json={"images": [text]}), 422, "images.0", "base64", fact)
    response = client.post(INFER, json=tensor(text, content_type="base64"))
    assert response.status_code == 400
    assert_facts(response.json()["error"], "image", "base64", fact)


def test_body_whose_content_type_is_wrong_is_named(client: httpx.Client, pictures: Picture) -> None:
    image = pictures["jpeg"]
    whole = httpx.Request("POST", "http://x", files=form([image]))
    body, kind = whole.read(), whole.headers["content-type"]
    for headers in ({}, JSON, {"content-type": "image/jpeg"}):
        refused(client.post("/v1/classify", content=body, headers=headers), 400, "multipart", "Content-Type")
    wrong = {"content-type": "Multipart/Form-Data; boundary=xyz"}
    refused(client.post("/v1/classify", content=body, headers=wrong), 400, "multipart", "'xyz'", "Content-Type")
    missing = {"content-type": "multipart/form-data"}
    refused(client.post("/v1/classify", content=body, headers=missing), 400, "boundary", "Content-Type")
    right = {"content-type": kind.replace("multipart/form-data", "Multipart/Form-Data")}
    assert client.post("/v1/classify", content=body, headers=right).status_code == 200
    refused(client.post("/v1/classify", content=image, headers=JSON), 400, "JSON", "Content-Type")
    refused(client.post("/v1/classify", json=tensor("a")["inputs"]), 422, "the body")
    refused(client.post("/v1/classify", content=json.dumps(tensor("a")).encode()), 400, "Open Inference Protocol")
    refused(client.post("/v1/classify", data={"image": "abc"}), 400, "URL-encoded form", "multipart")
    for content in (image, body):
        assert client.post(INFER, content=content).status_code == 400
    request = tensor("a")
    del request["inputs"][0]["data"]
    request["inputs"][0]["parameters"] = {"binary_data_size": 4 + len(image)}
    content = json.dumps(request).encode() + len(image).to_bytes(4, "little") + image
    assert_facts(client.post(INFER, content=content).json()["error"], "Inference-Header-Content-Length")


def test_content_encoding_is_refused_by_name_unless_it_is_identity(
    client: httpx.Client, pictures: Picture
) -> None:
    image = pictures["jpeg"]
    for name in ("Identity", "IDENTITY", ""):
        assert client.post("/v1/classify", content=image, headers={"Content-Encoding": name}).status_code == 200
    for name in ("gzip", "br", "deflate, gzip"):
        response = client.post("/v1/classify", content=gzip.compress(image), headers={"Content-Encoding": name})
        refused(response, 415, "Content-Encoding", name)
    body = json.dumps(tensor(base64.b64encode(image).decode(), content_type="base64")).encode()
    packed = gzip.compress(body)
    for name in ("GZIP", "x-gzip"):
        assert client.post(INFER, content=packed, headers={"Content-Encoding": name}).status_code == 200
    more = client.post(INFER, content=packed + packed, headers={"Content-Encoding": "gzip"})
    assert more.status_code == 400
    assert_facts(more.json()["error"], len(packed), "gzip")
    plain = client.post(INFER, content=body, headers={"Accept-Encoding": "gzip;q=0, deflate; q=0.0"})
    assert plain.status_code == 200 and "content-encoding" not in plain.headers


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_answers_and_advice(client: httpx.Client, pictures: Picture, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(pictures["png"])
    (tmp_path / "large.bmp").write_bytes(pictures["bmp"] + bytes(2_000_000))  # curl sends Expect: 100-continue
    expected = untimed(answer(client, pictures["png"]))["label"]
    url = str(client.base_url).rstrip("/") + "/v1/classify/"

    def curl(*words: str) -> dict[str, Any]:
        command = ["curl", "--silent", "--max-time", "60", *words, url]
        return dict(json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout))

    for words in (
        ("--data-binary", "@cat.png"),
        ("--form", "image=@cat.png"),
        ("--form", "image=@cat.png", "--form", "image=@cat.png"),
        ("--data-binary", "@cat.png", "--http1.0"),
        ("--data-binary", "@cat.png", "--header", "Transfer-Encoding: chunked"),
    ):
        assert {one["label"] for one in curl(*words)["images"]} == {expected}
    assert "label" in curl("--data-binary", "@large.bmp")["images"][0]
    assert_facts(curl("-d", "@cat.png")["detail"], "--data-binary @FILE")
    assert_facts(curl("--form", "image=cat.png")["detail"], "'image'", "image=@FILE")
    assert_facts(curl("--form", "photo=@cat.png")["detail"], "'photo'", "image=@FILE")
    assert_facts(curl("--form", "image=@cat.png;encoder=base64")["detail"], "base64")
    assert_facts(curl("--form", "image=@cat.png;encoder=quoted-printable")["detail"], "quoted-printable")
    assert_facts(curl("--data-urlencode", "image@cat.png")["detail"], "URL-encoded form")
    assert_facts(curl("-T", "cat.png", "--request-target", "/v1/classify")["detail"], "PUT", "POST")
