import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import assert_facts
from PIL import Image

from server.errors import ComputeError, ImageSizeError, NoMemoryError, NonFiniteError
from server.ipc import wire
from server.ipc.messages import Prediction, Task, TaskResult
from server.workers.runtime import LARGEST_DIFFERENCE, Runtime, open_runtime, prepare_runtime
from server.workers.worker import TASKS, Worker, run_worker
from student.bundle.bundle import Bundle, HeadProbabilities, open_bundle
from student.model.student import FUSIONS, Heads
from teacher_cache.errors import ImageError, ImageTypeError
from teacher_cache.rng import generator

Pictures = dict[str, bytes]


def worker_of(bundle: Bundle, runtime: Any = None, batch: int = 1) -> Worker:
    return Worker(bundle, runtime or open_runtime("torch", bundle, batch), batch, 50_000_000)


def alone(bundle: Bundle, image: bytes, fusion: str = "") -> HeadProbabilities:
    return bundle.predict(torch.from_numpy(bundle.prepare(image))[None], fusion)


def equal(one: Any, other: HeadProbabilities) -> bool:
    assert isinstance(one, Prediction), one
    rows = ((one.class_, other.class_), (one.distill, other.distill), (one.joint, other.fused))
    return all(np.array_equal(row, expected[0].numpy()) for row, expected in rows)


def answers(worker: Worker, images: list[bytes], fusion: str = "") -> list[Any]:
    return [done.value for done in worker.run([Task(image, fusion) for image in images])]


def test_every_image_type_gets_the_bundle_prediction(bundle: Bundle, pictures: Pictures) -> None:
    results = answers(worker_of(bundle), list(pictures.values()))
    for name, one in zip(pictures, results, strict=True):
        assert equal(one, alone(bundle, pictures[name])), name
        heads = bundle.heads(torch.from_numpy(bundle.prepare(pictures[name]))[None])
        assert torch.equal(torch.from_numpy(one.class_logits), heads.class_logits[0])
        assert torch.equal(torch.from_numpy(one.distill_logits), heads.distill_logits[0])


def test_prepared_pixels_get_the_prediction_of_their_image(bundle: Bundle, pictures: Pictures) -> None:
    pixels = bundle.prepare(pictures["jpeg"])
    (done,) = worker_of(bundle).run([Task(pixels)])
    assert equal(done.value, alone(bundle, pictures["jpeg"]))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_classified(bundle: Bundle, kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    moving, still = BytesIO(), BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(moving, kind, save_all=True, append_images=frames[1:], **options)
    frames[0].save(still, "PNG")
    with Image.open(BytesIO(moving.getvalue())) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    (result,) = answers(worker_of(bundle), [moving.getvalue()])
    assert equal(result, alone(bundle, still.getvalue()))


def test_image_over_the_decode_time_limit_is_refused(
    bundle: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header has millions of short comments; the next image has the full time again."""
    monkeypatch.setattr("server.workers.worker.DECODE_SECONDS", 0.3)
    slow = b"P6\n" + b"#\n" * 5_000_000 + b"1 1\n255\nabc"
    began = time.monotonic()
    late, next_one = answers(worker_of(bundle), [slow, pictures["png"]])
    assert isinstance(late, ImageError) and time.monotonic() - began < 5
    assert equal(next_one, alone(bundle, pictures["png"]))


def test_exif_orientation_is_applied(bundle: Bundle, pictures: Pictures) -> None:
    lying, turned, upright = (alone(bundle, pictures[f"{kind}png"]) for kind in ("", "rotated ", "turned "))
    (result,) = answers(worker_of(bundle), [pictures["rotated png"]])
    assert equal(result, upright)
    assert torch.equal(turned.fused, upright.fused)
    assert not equal(result, lying)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_requested_fusion_is_used(bundle: Bundle, pictures: Pictures, fusion: str) -> None:
    (result,) = answers(worker_of(bundle), [pictures["jpeg"]], fusion)
    assert equal(result, alone(bundle, pictures["jpeg"], fusion))


def test_bad_images_do_not_change_other_answers(bundle: Bundle, pictures: Pictures) -> None:
    good = pictures["jpeg"]
    bad = [b"", b"no image", good[:200], pictures["png"][:100]]
    results = answers(worker_of(bundle, batch=4), [image for one in bad for image in (one, good)])
    (expected,) = answers(worker_of(bundle, batch=4), [good])
    assert all(isinstance(one, ImageError) for one in results[::2])
    assert all(np.array_equal(one.rows, expected.rows) for one in results[1::2])


@pytest.mark.parametrize("batch", [2, 5])
def test_answer_does_not_depend_on_the_rest_of_the_batch(bundle: Bundle, pictures: Pictures, batch: int) -> None:
    worker, images = worker_of(bundle, batch=batch), list(pictures.values())
    by_itself = [answers(worker, [image])[0].rows for image in images]
    together = [one.rows for one in answers(worker, images)]
    reversed_order = [one.rows for one in answers(worker, images[::-1])][::-1]
    for one, other, third in zip(by_itself, together, reversed_order, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)


def test_unexpected_exception_fails_only_its_image(bundle: Bundle, pictures: Pictures) -> None:
    class Torn(Bundle):
        def prepare(self, image: bytes) -> Any:
            return bundle.prepare(image) if image == pictures["png"] else 1 / 0

    torn, whole = answers(
        worker_of(Torn(bundle.card, bundle.student, bundle.device)), [pictures["jpeg"], pictures["png"]]
    )
    assert isinstance(torn, ComputeError)
    assert "ZeroDivision" not in str(torn)
    assert isinstance(whole, Prediction)


def peak() -> int:
    """Return the peak resident memory of this process since reset_peak(), in kB."""
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)[0])


def reset_peak() -> int:
    """Reset the peak to the current resident memory and return it, in kB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak()


@pytest.mark.parametrize("size", [(7100, 7100), (12_000, 12_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_decoding(
    bundle: Bundle, vast: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    worker, image, took = worker_of(bundle), vast(*size), []
    answers(worker, [image])
    before = reset_peak()
    for _ in range(5):
        began = time.perf_counter()
        (result,) = answers(worker, [image])
        took.append(time.perf_counter() - began)
        assert isinstance(result, ImageSizeError)
    assert peak() - before < 50_000
    assert statistics.median(took) < 0.05


def test_eps_images_are_refused(bundle: Bundle) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (result,) = answers(worker_of(bundle), [eps])
    assert isinstance(result, ImageTypeError)


def test_non_finite_output_fails_only_its_image(wild_folder: Path, pictures: Pictures) -> None:
    wild = open_bundle(wild_folder, torch.device("cpu"))
    results = answers(worker_of(wild, batch=3), list(pictures.values()))
    assert {type(one) for one in results} == {Prediction, NonFiniteError}
    assert all(np.isfinite(one.rows).all() for one in results if isinstance(one, Prediction))


def test_out_of_memory_halves_the_batch(bundle: Bundle, pictures: Pictures) -> None:
    sizes: list[int] = []

    def small_device(pixels: torch.Tensor) -> Heads:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return bundle.heads(pixels)

    images = [pictures["jpeg"], pictures["png"], pictures["gif"], pictures["webp"], pictures["bmp"]]
    results = answers(worker_of(bundle, small_device, batch=8), images)
    assert sizes == [8, 4, 2, 2, 4, 2]
    for one, image in zip(results, images, strict=True):
        np.testing.assert_allclose(one.joint, alone(bundle, image).fused[0].numpy(), rtol=1e-4)


def narrow(runtime: Runtime, most: int, error: Exception) -> tuple[Runtime, list[int]]:
    """Return a runtime that raises for more than `most` images, and the list of its batch sizes."""
    sizes: list[int] = []

    def run(pixels: torch.Tensor) -> Heads:
        sizes.append(len(pixels))
        if len(pixels) > most:
            raise error
        return runtime(pixels)

    return run, sizes


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def converted(bundle: Bundle, bundle_folder: Path, request: pytest.FixtureRequest) -> tuple[str, Runtime]:
    """Name and runtime of each library other than torch, for a batch of four."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(request.param, request.param))
    model = prepare_runtime(request.param, bundle, bundle_folder)
    return request.param, open_runtime(request.param, bundle, 4, model)


def test_every_runtime_accepts_half_a_batch(
    bundle: Bundle, converted: tuple[str, Runtime], pictures: Pictures
) -> None:
    name, runtime = converted
    halving, sizes = narrow(runtime, 2, RuntimeError("std::bad_alloc"))
    images = [pictures["jpeg"], pictures["png"], pictures["gif"]]
    results = answers(worker_of(bundle, halving, batch=4), images)
    assert sizes == [4, 2, 2]
    for one, image in zip(results, images, strict=True):
        assert np.abs(one.joint - alone(bundle, image).fused[0].numpy()).max() < LARGEST_DIFFERENCE[name]


def test_runtime_answer_does_not_depend_on_the_rest_of_the_batch(
    bundle: Bundle, converted: tuple[str, Runtime], pictures: Pictures
) -> None:
    worker, images = worker_of(bundle, converted[1], batch=4), list(pictures.values())
    together = [one.rows for one in answers(worker, images)]
    for rows, image in zip(together, images, strict=True):
        assert np.array_equal(rows, answers(worker, [image])[0].rows)


@pytest.mark.parametrize(
    ("words", "expected"), [("Failed to allocate memory", NoMemoryError), ("Got invalid dimensions", ComputeError)]
)
def test_runtime_exception_becomes_the_error_of_the_first_failure(
    bundle: Bundle, pictures: Pictures, words: str, expected: type[Exception]
) -> None:
    class InvalidArgumentError(Exception):  # the exceptions of ONNX Runtime are not RuntimeErrors
        pass

    def refuse(pixels: torch.Tensor) -> Heads:
        raise InvalidArgumentError("got another shape")

    stiff, sizes = narrow(refuse, 2, InvalidArgumentError(words))
    results = answers(worker_of(bundle, stiff, batch=4), [pictures["jpeg"], pictures["png"]])
    assert [type(one) for one in results] == [expected] * 2
    assert sizes == [4, 2, 1, 1]


def test_real_memory_exhaustion_is_reported_and_the_worker_recovers(slow_folder: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import torch
from server.ipc.messages import Prediction, Task
from server.errors import NoMemoryError
from server.workers.runtime import open_runtime
from server.workers.worker import Worker
from student.bundle.bundle import open_bundle

torch.set_num_threads(1)
bundle = open_bundle(Path(sys.argv[1]), torch.device("cpu"))
pixels = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
worker = Worker(bundle, open_runtime("torch", bundle, 64), 64, 10**6)
worker.run([Task(pixels)] * 2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**7, resource.RLIM_INFINITY))  # too little for 64 images
found = {type(done.value) for done in worker.run([Task(pixels)] * 64)}
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(found <= {Prediction, NoMemoryError}, type(worker.run([Task(pixels)])[0].value) is Prediction)
"""
    # Return freed memory to the system immediately; otherwise the second batch would reuse that of the first.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", script, str(slow_folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert ran.stdout == "True True\n", ran
    assert_facts(ran.stderr, 64, 32)


def test_no_memory_for_one_image_is_no_memory_error(bundle: Bundle, pictures: Pictures) -> None:
    def no_device(pixels: torch.Tensor) -> Heads:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert [type(one) for one in answers(worker_of(bundle, no_device, batch=4), [pictures["jpeg"]] * 4)] == [
        NoMemoryError
    ] * 4


def test_other_task_kinds_share_decoding_and_errors(bundle: Bundle, pictures: Pictures) -> None:
    TASKS["mean"] = lambda bundle, pixels, task: float(pixels.mean())
    try:
        done = worker_of(bundle).run([Task(pictures["png"], kind="mean"), Task(b"rubbish", kind="mean")])
    finally:
        del TASKS["mean"]
    assert done[0].value == bundle.prepare(pictures["png"]).mean()
    assert isinstance(done[1].value, ImageError)


def test_worker_ends_when_its_connection_closes(bundle: Bundle, pictures: Pictures) -> None:
    connection, worker_end = socket.socketpair()
    thread = threading.Thread(target=run_worker, args=(worker_end, worker_of(bundle)))
    thread.start()
    wire.send(connection, [Task(pictures["jpeg"])])
    (done,) = wire.receive(connection)
    assert isinstance(done, TaskResult)
    assert equal(done.value, alone(bundle, pictures["jpeg"]))
    connection.close()
    thread.join(10)
    assert not thread.is_alive()
    worker_end.close()


def test_decoders_write_nothing_to_standard_error(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    noise = Image.fromarray(generator("tiff").integers(0, 256, (48, 64, 3), dtype=np.uint8))
    broken = []
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):  # libtiff prints a warning for each of these
        file = BytesIO()
        noise.save(file, "TIFF", compression=compression)
        broken.append(file.getvalue()[:200] + b"\xff" * 40 + file.getvalue()[240:])
    results = answers(worker_of(bundle), broken)
    assert any(isinstance(one, ImageError) for one in results)
    assert capfd.readouterr().err == ""
