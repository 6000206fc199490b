import asyncio
import gc
import gzip
import signal
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from facts import assert_facts
from tritonclient.utils import InferenceServerException

from server.settings import read_settings
from student.bundle.bundle import Bundle

MODEL = "deit_tiny_distilled_patch16_224"
OUTPUTS = ["probabilities", "class_probabilities", "distill_probabilities", "label"]
KINDS = ("jpeg", "png", "gif", "rotated jpeg")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # tritonclient leaves sockets open


@pytest.fixture(scope="module", autouse=True)
def leave_no_sockets() -> Iterator[None]:
    """Collect the sockets that tritonclient leaves open, so that no test of another file gets their warnings."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def address(client: httpx.Client) -> str:
    return f"{client.base_url.host}:{client.base_url.port}"


@pytest.fixture(scope="module")
def v2(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def expected(client: httpx.Client, pictures: dict[str, bytes]) -> list[dict[str, Any]]:
    """The answers of /v1/classify for KINDS."""
    asked = {"head": "all", "top_k": 3}
    answers = [client.post("/v1/classify", content=pictures[kind], params=asked) for kind in KINDS]
    return [answer.json()["images"][0] for answer in answers]


@contextmanager
def fails(status: int, *facts: object) -> Iterator[None]:
    """Assert that the request in the block fails with this status and an error that contains the facts."""
    with pytest.raises(InferenceServerException) as raised:
        yield
    assert_facts(raised.value, f"[{status}]", *facts)


def encoded(pictures: dict[str, bytes], *kinds: str) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(kinds)], "BYTES")
    tensor.set_data_from_numpy(np.array([pictures[kind] for kind in kinds], dtype=object))
    return tensor


def check(result: triton.InferResult, expected: list[dict[str, Any]]) -> None:
    """Assert that the result has the numbers of /v1/classify."""
    for name, head in (
        ("probabilities", "joint"),
        ("class_probabilities", "class"),
        ("distill_probabilities", "distill"),
    ):
        rows = result.as_numpy(name)
        assert rows.dtype == np.float32
        for row, entry in zip(rows, expected, strict=True):
            scores = {score["index"]: score["probability"] for score in entry["heads"][head]["top_k"]}
            assert {index: float(value) for index, value in enumerate(row)} == pytest.approx(scores, abs=1e-7)
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
    assert labels == [entry["label"] for entry in expected]


def test_health_and_metadata_match_the_protocol(v2: triton.InferenceServerClient) -> None:
    assert v2.is_server_live() and v2.is_server_ready()
    assert v2.is_model_ready(MODEL) and not v2.is_model_ready("none")
    assert v2.get_server_metadata()["name"] == "limbeck"
    metadata = v2.get_model_metadata(MODEL)
    (version,) = metadata["versions"]
    assert v2.is_model_ready(MODEL, version) and not v2.is_model_ready(MODEL, "none")
    assert v2.get_model_metadata(MODEL, version) == metadata
    assert [one["name"] for one in metadata["inputs"]] == ["image", "pixels"]
    assert metadata["inputs"][1]["shape"] == [-1, 32, 32, 3]
    assert [one["name"] for one in metadata["outputs"]] == OUTPUTS


def test_encoded_images_get_the_answers_of_classify(
    v2: triton.InferenceServerClient, pictures: dict[str, bytes], expected: list[dict[str, Any]]
) -> None:
    result = v2.infer(MODEL, [encoded(pictures, *KINDS)], request_id="mine")
    check(result, expected)
    assert result.get_response()["id"] == "mine"
    assert all("binary_data_size" in one["parameters"] for one in result.get_response()["outputs"])


@pytest.mark.parametrize("binary", [True, False])
def test_prepared_pixels_give_the_same_answer(
    v2: triton.InferenceServerClient,
    bundle: Bundle,
    pictures: dict[str, bytes],
    expected: list[dict[str, Any]],
    binary: bool,
) -> None:
    pixels = np.stack([bundle.prepare(pictures[kind]) for kind in KINDS])
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    check(v2.infer(MODEL, [tensor], outputs=outputs), expected)


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_request_and_response_may_be_compressed(
    v2: triton.InferenceServerClient, pictures: dict[str, bytes], expected: list[dict[str, Any]], packed: str
) -> None:
    many = 16
    result = v2.infer(
        MODEL,
        [encoded(pictures, *KINDS * many)],
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    check(result, expected * many)


def test_large_answer_is_compressed_if_the_client_accepts_it(
    client: httpx.Client, pictures: dict[str, bytes]
) -> None:
    image = b64encode(pictures["jpeg"]).decode()
    body = {
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [40],
                "data": [image] * 40,
                "parameters": {"content_type": "base64"},
            }
        ]
    }
    answers = {}
    for packed in ("gzip", "deflate", "identity"):
        headers = {"Accept-Encoding": packed}
        answers[packed] = client.post(f"/v2/models/{MODEL}/infer", json=body, headers=headers)
        assert answers[packed].headers.get("content-encoding", "identity") == packed
    assert answers["gzip"].json() == answers["deflate"].json() == answers["identity"].json()
    assert answers["identity"].json()["outputs"][0]["shape"] == [40, 3]


def test_requests_may_overlap(
    v2: triton.InferenceServerClient, pictures: dict[str, bytes], expected: list[dict[str, Any]]
) -> None:
    waiting = [v2.async_infer(MODEL, [encoded(pictures, kind)]) for kind in KINDS * 3]
    for one, entry in zip(waiting, expected * 3, strict=True):
        check(one.get_result(), [entry])


def test_asyncio_client_gets_the_same_answers(
    address: str, pictures: dict[str, bytes], expected: list[dict[str, Any]]
) -> None:
    async def ask() -> list[triton.InferResult]:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            images = [encoded(pictures, kind) for kind in KINDS]
            packed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
            return list(await asyncio.gather(*(client.infer(MODEL, [image], **packed) for image in images)))

    for result, entry in zip(asyncio.run(ask()), expected, strict=True):
        check(result, [entry])


def test_classification_output_lists_the_most_probable_classes(
    v2: triton.InferenceServerClient, pictures: dict[str, bytes], expected: list[dict[str, Any]]
) -> None:
    output = triton.InferRequestedOutput("probabilities", class_count=2)
    result = v2.infer(MODEL, [encoded(pictures, *KINDS)], outputs=[output])
    rows = result.as_numpy("probabilities")
    assert rows.shape == (4, 2)
    for row, entry in zip(rows, expected, strict=True):
        for words, score in zip(row, entry["top_k"], strict=False):
            value, index, label = words.decode().split(":")
            assert (int(index), label) == (score["index"], score["label"])
            assert float(value) == pytest.approx(score["probability"], abs=1e-6)


def test_repository_unloads_and_loads_a_model(
    start: Callable[..., Any], bundle_folder: Path, pictures: dict[str, bytes], expected: list[dict[str, Any]]
) -> None:
    running = start(bundle_folder)
    with triton.InferenceServerClient(running.url.removeprefix("http://")) as v2:
        (entry,) = v2.get_model_repository_index()
        assert (entry["name"], entry["state"]) == (MODEL, "READY")
        v2.unload_model(MODEL)
        assert not v2.is_model_ready(MODEL)
        (entry,) = v2.get_model_repository_index()
        assert (entry["name"], entry["state"]) == (MODEL, "UNAVAILABLE")
        with fails(404, MODEL):
            v2.infer(MODEL, [encoded(pictures, "jpeg")])
        v2.load_model(MODEL)
        check(v2.infer(MODEL, [encoded(pictures, *KINDS)]), expected)
        with fails(400, "parameters"):
            v2.load_model(MODEL, config="{}", files={"file:1/model": b"mine"})
        with fails(404, "unknown-model", MODEL):
            v2.load_model("unknown-model")
        with fails(403):
            v2.unload_model(MODEL, headers={"Origin": "https://page.example"})
        assert v2.is_model_ready(MODEL)
        v2.unload_model(MODEL)
        assert not v2.is_server_ready()
        v2.load_model(MODEL)
    running.process.send_signal(signal.SIGTERM)
    _, errors = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    assert len(errors.splitlines()) == 2
    for line in errors.splitlines():
        assert_facts(line, MODEL, entry["version"])


def test_model_control_is_open_to_loopback_or_by_setting_only(
    start: Callable[..., Any], bundle_folder: Path
) -> None:
    allowed = {"auto": {"127.0.0.1": True, "0.0.0.0": False}, "on": {"0.0.0.0": True}, "off": {"localhost": False}}
    for control, hosts in allowed.items():
        for host, allows in hosts.items():
            assert read_settings([f"model_control={control}"], host=host).allows_loading == allows
    running = start(bundle_folder, "--workers", 1, "--set", "model_control=off")
    with triton.InferenceServerClient(running.url.removeprefix("http://")) as v2:
        for change in (v2.load_model, v2.unload_model):
            with fails(403, "model_control=on"):
                change(MODEL)
        assert v2.is_model_ready(MODEL)


def test_bad_image_error_gives_its_index(v2: triton.InferenceServerClient, pictures: dict[str, bytes]) -> None:
    broken = pictures | {"broken": pictures["jpeg"][:300]}
    with fails(400, "image 1"):
        v2.infer(MODEL, [encoded(broken, "jpeg", "broken")])


def test_too_short_timeout_is_504(v2: triton.InferenceServerClient, pictures: dict[str, bytes]) -> None:
    images = [encoded(pictures, *["jpeg"] * 60)]
    with fails(504):
        v2.infer(MODEL, images, timeout=1)
    v2.infer(MODEL, [encoded(pictures, "jpeg")], timeout=30_000_000)


def test_shared_memory_is_refused(v2: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_shared_memory("region", 10)
    with fails(400, "shared"):
        v2.infer(MODEL, [tensor])
    with pytest.raises(InferenceServerException):
        v2.register_system_shared_memory("region", "/region", 10)


def body(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["x"]}
    return {"inputs": [tensor | changes]}


BAD: dict[str, Any] = {
    "not an object": [],
    "no inputs": {},
    "an input that is not an object": {"inputs": [1]},
    "an unknown input": body(name="audio"),
    "two inputs": {"inputs": body()["inputs"] * 2},
    "an unknown type": body(datatype="FP8"),
    "the wrong type": body(datatype="UINT8", data=[1]),
    "a shape that is not a list": body(shape="1"),
    "a negative shape": body(shape=[-1]),
    "a boolean in the shape": body(shape=[True]),
    "a shape that does not fit": body(shape=[2]),
    "a vast shape": body(shape=[2**31 - 1] * 9),
    "no image at all": body(shape=[0], data=[]),
    "too many images": body(shape=[65], data=["x"] * 65),
    "no data": body(data=None),
    "numbers for strings": body(data=[1]),
    "invalid base64": body(parameters={"content_type": "base64"}, data=["*"]),
    "pixels too large": body(name="pixels", datatype="UINT8", shape=[1], data=[256]),
    "pixels of another size": body(name="pixels", datatype="UINT8", shape=[1, 1, 1, 3], data=[[[[1, 2, 3]]]]),
    "ragged pixels": body(name="pixels", datatype="UINT8", shape=[3], data=[[1], [1, 2]]),
    "a missing binary tail": body(parameters={"binary_data_size": 5}),
    "a size that is not a number": body(parameters={"binary_data_size": "all"}),
    "parameters that are not an object": body(parameters=[1]),
    "an unknown output": body() | {"outputs": [{"name": "unknown"}]},
    "outputs that are not a list": body() | {"outputs": 3},
    "classification of a label": body() | {"outputs": [{"name": "label", "parameters": {"classification": 1}}]},
    "a negative timeout": body() | {"parameters": {"timeout": -1}},
    "an id that is not a string": body() | {"id": 7},
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_protocol_request_is_a_one_line_400(client: httpx.Client, name: str) -> None:
    response = client.post(f"/v2/models/{MODEL}/infer", json=BAD[name])
    assert (response.status_code, list(response.json())) == (400, ["error"]), response.text
    assert "\n" not in response.json()["error"]


def test_every_error_under_v2_has_the_protocol_format(client: httpx.Client) -> None:
    infer = f"/v2/models/{MODEL}/infer"
    bomb, cut = gzip.compress(bytes(30_000_000)), gzip.compress(b"{}")[:-9]
    for status, response in (
        (404, client.get("/v2/none")),
        (404, client.get("/v2/models/none")),
        (405, client.get(infer)),
        (400, client.post(infer, content=b"{")),
        (400, client.post(infer, content=b"{}", headers={"Inference-Header-Content-Length": "9"})),
        (400, client.post(infer, content=b"{}", headers={"Inference-Header-Content-Length": "-1"})),
        (400, client.post(infer, content=b"{}", headers={"Content-Encoding": "gzip"})),
        (400, client.post(infer, content=cut, headers={"Content-Encoding": "gzip"})),
        (413, client.post(infer, content=bomb, headers={"Content-Encoding": "gzip"})),
        (415, client.post(infer, content=b"{}", headers={"Content-Encoding": "br"})),
    ):
        assert (response.status_code, list(response.json())) == (status, ["error"]), response.text
