"""Hostile and unusual requests are refused or answered at low cost."""

import errno
import gzip
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from facts import assert_facts
from http_asserts import refused
from PIL import Image
from wait import until

from server.settings import read_settings
from server.web.auth import read_keys
from teacher_cache.errors import LimbeckError

Picture = dict[str, bytes]
INFER = "/v2/models/deit_tiny_distilled_patch16_224/infer"


def raw(client: httpx.Client, head: bytes, body: bytes = b"") -> bytes:
    """Send bytes on a new connection and return everything received until the server closes it."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as one:
        one.sendall(head + body)
        return b"".join(iter(lambda: one.recv(65536), b""))


def infer(client: httpx.Client, **request: Any) -> httpx.Response:
    given = {"name": "image", "datatype": "BYTES", "data": ["a"], "shape": [1]} | request.pop("input", {})
    return client.post(INFER, json={"inputs": [given]} | request)


@pytest.mark.parametrize("sides", [9, 150_000])
def test_tensor_with_too_many_dimensions_is_refused_quickly(client: httpx.Client, sides: int) -> None:
    began = time.monotonic()
    response = infer(client, input={"shape": [2**31 - 1] * sides})
    assert response.status_code == 400
    assert_facts(response.json()["error"], "image", "shape", 8)
    assert time.monotonic() - began < 5


def test_huge_numbers_are_400(client: httpx.Client) -> None:
    assert infer(client, parameters={"timeout": 10**400}).status_code == 400  # because "a" is not an image
    assert infer(client, input={"parameters": {"binary_data_size": 10**400}}).status_code == 400
    length = {"Inference-Header-Content-Length": "0" * 5000 + "2"}
    assert client.post(INFER, content=b"{}", headers=length).status_code == 400


def test_form_with_an_undefined_charset_is_400(client: httpx.Client) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="im\xffage"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    kind = {"content-type": "multipart/form-data; boundary=b; charset=undefined"}
    refused(client.post("/v1/classify", content=body, headers=kind), 400, "multipart", "charset")


def test_error_answers_do_not_echo_long_input(client: httpx.Client) -> None:
    long = "n" * 5_000_000
    for response in (
        infer(client, input={"name": long}),
        client.post("/v1/classify", json={"images": ["aaaa"], long: 1}),
        client.post("/v1/classify", content=b"x", params={"model": long[:50_000]}),
    ):
        assert 400 <= response.status_code < 500 and len(response.content) < 1100


def test_compressed_body_for_classify_is_415(client: httpx.Client, pictures: Picture) -> None:
    packed = {"content-encoding": "gzip"}
    response = client.post("/v1/classify", content=gzip.compress(pictures["jpeg"]), headers=packed)
    refused(response, 415, "Content-Encoding")


def test_unknown_query_key_error_lists_the_valid_keys(client: httpx.Client, pictures: Picture) -> None:
    for path, names in (
        ("explain", ("method", "format", "model", "version")),
        ("classify", ("model", "version", "top_k", "head")),
    ):
        response = client.post(f"/v1/{path}", content=pictures["jpeg"], params={"foo": 1})
        refused(response, 422, "foo", *names)


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade"])
def test_http_2_upgrade_request_is_answered_in_http_1(
    client: httpx.Client, pictures: Picture, name: bytes
) -> None:
    image = pictures["jpeg"] + b"\r\nupgrade: stays unchanged in a body\r\n"
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: close, %s\r\n%s: h2c\r\n" % (name, name)
    said = raw(client, head + b"Content-Length: %d\r\n\r\n" % len(image), image)
    assert said.startswith(b"HTTP/1.1 200 ")


def test_long_header_is_431_and_endless_trailers_close_the_connection(client: httpx.Client) -> None:
    long = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n"
    assert raw(client, long).startswith(b"HTTP/1.1 431 ")
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    with (
        socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as one,
        pytest.raises(ConnectionError),
    ):
        one.sendall(head)
        for _ in range(1000):
            one.sendall(b"X-Trailer: " + b"a" * 100_000 + b"\r\n")


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Any], slow_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with one worker, a short queue, a small max_held_bytes, a key and an access log on a full disk."""
    keys = tmp_path_factory.mktemp("guarded") / "keys"
    keys.write_text("\ufeff# of the lab\n\nmy key\n", "utf-8")
    limits = [word for name in ("max_waiting=3", "max_held_bytes=6000000") for word in ("--set", name)]
    return start(slow_folder, "--workers", 1, "--api-keys", keys, "--access-log", "/dev/full", *limits)


@pytest.fixture
def lab(guarded: Any) -> Any:
    with httpx.Client(base_url=guarded.url, timeout=60, headers={"authorization": "bearer my key"}) as client:
        yield client


def test_key_is_one_line_and_refusals_are_counted_by_route(lab: httpx.Client, pictures: Picture) -> None:
    for wrong in ("#", "# of the lab", "my", "key", "of"):
        for path in ("/v1/classify", INFER):
            assert lab.post(path, content=b"x", headers={"authorization": f"Bearer {wrong}"}).status_code == 401
    assert lab.post("/v1/classify", content=pictures["jpeg"]).status_code == 200
    counts = lab.get("/metrics").text
    for path in ("/v1/classify", "/v2/models/{name}/infer"):
        assert f'limbeck_requests_total{{path="{path}",status="401"}} 5.0' in counts
    assert 'path="other"' not in counts


def test_full_queue_refuses_the_excess_images_or_the_whole_request(lab: httpx.Client, pictures: Picture) -> None:
    form = [("image", ("a", pictures["jpeg"])) for _ in range(20)]
    some = lab.post("/v1/classify", files=form)
    statuses = [entry.get("status", 200) for entry in some.json()["images"]]
    assert (some.status_code, set(statuses)) == (200, {200, 503}) and int(some.headers["retry-after"]) > 0

    def ask(number: int) -> httpx.Response:
        return lab.post("/v1/classify", files=form[: 2 + number % 2])

    def busy() -> float:
        return sum(map(float, re.findall(r'^limbeck_faults_total\{.*reason="busy".*\} (\S+)$', metrics(), re.M)))

    def metrics() -> str:
        return lab.get("/metrics").text

    before = busy()
    with ThreadPoolExecutor(16) as pool:
        every = list(pool.map(ask, range(64)))
    whole = [response for response in every if response.status_code == 503]
    assert whole and busy() - before >= len(whole)
    assert all(list(response.json()) == ["detail"] for response in whole)
    assert all(int(response.headers["retry-after"]) > 0 for response in whole)
    inputs = {"name": "image", "datatype": "BYTES", "data": ["a"] * 20, "shape": [20]}
    assert (
        lab.post(INFER, json={"inputs": [inputs]}).status_code == 503
    )  # one refused image fails the whole request


def test_decompressed_bodies_count_toward_max_held_bytes(lab: httpx.Client, guarded: Any) -> None:
    server = psutil.Process(guarded.process.pid)
    body, packed = gzip.compress(bytes(19_000_000)), {"content-encoding": "gzip"}
    before = server.memory_info().rss
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: lab.post(INFER, content=body, headers=packed), range(40)))
    assert {reply.status_code for reply in replies} == {503}
    assert all(list(reply.json()) == ["error"] for reply in replies)
    assert server.memory_info().rss - before < 100_000_000


def test_incomplete_bodies_count_toward_max_held_bytes(lab: httpx.Client, guarded: Any) -> None:
    server, sockets = psutil.Process(guarded.process.pid), []
    before = server.memory_info().rss
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nX-API-Key: my key\r\nContent-Length: 262000\r\n\r\n"
    for _ in range(200):
        one = socket.create_connection((lab.base_url.host, lab.base_url.port or 0), timeout=20)
        sockets.append(one)
        one.sendall(head + bytes(260_000))
    refused = 0
    for one in sockets:
        one.settimeout(0.05)
        with suppress(TimeoutError):
            refused += one.recv(100).startswith(b"HTTP/1.1 503 ")
        one.close()
    assert refused > 150
    assert server.memory_info().rss - before < 60_000_000
    until(lambda: lab.post("/v1/classify", content=b"x").status_code == 400)


@pytest.mark.parametrize(
    "body", [b'{"images":[1' + b",1" * 9_000_000 + b"]}", b'{"a":1' + b',"b":1' * 900_000 + b"}"]
)
def test_json_with_too_many_values_is_refused_before_parsing(guarded: Any, lab: httpx.Client, body: bytes) -> None:
    server = psutil.Process(guarded.process.pid)
    before, began = server.memory_info().rss, time.monotonic()
    response = lab.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    if len(body) <= 6_000_000:  # a longer body exceeds max_held_bytes and gets 503
        refused(response, 422, "images", "base64")
    assert time.monotonic() - began < 5 and server.memory_info().rss - before < 100_000_000


def test_unwritable_access_log_is_one_line_and_stops_no_request(
    lab: httpx.Client, guarded: Any, pictures: Picture
) -> None:
    for _ in range(3):
        assert lab.post("/v1/classify", content=pictures["jpeg"]).status_code == 200
    guarded.process.terminate()
    said = guarded.process.communicate(timeout=60)[1]
    assert len(said.splitlines()) == 1
    assert_facts(said, "--access-log", "/dev/full", os.strerror(errno.ENOSPC))


def test_keys_not_in_utf_8_are_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe\n")
    settings = read_settings([], api_keys=tmp_path / "keys")
    with pytest.raises(LimbeckError) as raised:
        read_keys(settings)
    assert_facts(raised.value, "--api-keys", tmp_path / "keys", "UTF-8")
    assert "\n" not in str(raised.value)


def test_early_reload_and_closed_streams_do_not_stop_the_server(bundle_folder: Path) -> None:
    words = [sys.executable, "-m", "server.cli", "serve", str(bundle_folder), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, encoding="utf-8") as early:
        until(lambda: psutil.Process(early.pid).children())  # the first child process has started
        early.send_signal(signal.SIGHUP)
        assert early.stderr and "http://127.0.0.1:" in early.stderr.readline()
        early.terminate()
    assert early.returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    closed = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *words[:-1], str(port)]
    with subprocess.Popen(closed) as process:

        def ready() -> bool:
            assert process.poll() is None
            try:
                return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        until(ready)
        process.terminate()
    assert process.returncode == 0


def test_header_may_arrive_in_any_pieces(client: httpx.Client) -> None:
    """The pixels contain a header-like line, which must stay as it is; the Upgrade header is ignored."""
    pixels = b"\r\nupgrade: h2c\r\n\r\n" + bytes(range(256)) * 900
    image = b"P6 240 %d 255\n" % (len(pixels) // 720) + pixels[: len(pixels) // 720 * 720]
    whole = client.post("/v1/classify", content=image).json()["images"][0]["top_k"]
    lines = (b"POST /v1/classify HTTP/1.1", b"Host: x", b"Upgrade: h2c", b"Connection: close, Upgrade")
    head = b"\r\n".join((*lines, b"Content-Length: %d" % len(image), b"", b""))
    upgrade = head.index(b"Upgrade") + 4
    for place in (1, upgrade, *range(len(head) - 5, len(head) + 1)):
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(head[:place])
            time.sleep(0.05)
            one.sendall(head[place:] + image)
            said = b"".join(iter(lambda one=one: one.recv(65536), b""))
        assert said.startswith(b"HTTP/1.1 200 "), (place, said)
        assert json.loads(said.partition(b"\r\n\r\n")[2])["images"][0]["top_k"] == whole, place


def test_datatype_that_is_not_a_string_is_400(client: httpx.Client) -> None:
    for odd in ({}, ["BYTES"], 3, None):
        assert infer(client, input={"datatype": odd}).status_code == 400


def test_image_size_is_read_as_the_type_that_is_decoded(client: httpx.Client) -> None:
    """The image is a TIFF of 8 x 8 pixels and also a valid FLC header of 13,000 x 13,000 pixels."""
    place = 0x1AF12  # offset of the TIFF tags; in FLC, the magic number and a frame count of one
    both = bytearray(b"II*\0" + struct.pack("<IHHHH", place, 13_000, 13_000, 8, 0)).ljust(place, b"\0")
    both[128:152] = struct.pack("<IHHQIHxx", 40, 0xF1FA, 1, 0, 24, 13)
    short, long = 3, 4
    tags = [(256, short, 8), (257, short, 8), (258, short, 8), (259, short, 1), (262, short, 1), (273, long, 0)]
    tags += [(277, short, 1), (278, short, 8), (279, long, 64)]
    both += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    image = bytes(both) + bytes(4)
    assert Image.open(BytesIO(image), formats=("TIFF",)).size == (8, 8)
    plain = BytesIO()
    Image.open(BytesIO(image), formats=("TIFF",)).save(plain, "PNG")
    as_tiff, as_png = (client.post("/v1/classify", content=data) for data in (image, plain.getvalue()))
    assert as_tiff.status_code == 200
    assert as_tiff.json()["images"][0]["top_k"] == as_png.json()["images"][0]["top_k"]


def test_jpeg_with_too_many_scans_is_refused_quickly(client: httpx.Client) -> None:
    photo = BytesIO()
    Image.new("RGB", (6000, 6000)).save(photo, "JPEG", progressive=True)
    scan = re.search(rb"\xff\xda.*?(?=\xff[\xc4\xda\xd9])", photo.getvalue()[1000:], re.DOTALL)
    assert scan
    bomb = photo.getvalue()[:-2] + scan.group() * 500 + b"\xff\xd9"
    began = time.monotonic()
    refused(client.post("/v1/classify", content=bomb), 413, "scan", "JPEG")
    assert time.monotonic() - began < 5
