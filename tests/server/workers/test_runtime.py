import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from clean_process import exit_code_of
from facts import assert_facts

from server.workers.runtime import LARGEST_DIFFERENCE, RUNTIMES, check_difference, open_runtime, prepare_runtime
from student.bundle.bundle import Bundle, open_bundle
from student.bundle.check_images import CheckImages, load_check, save_check
from student.bundle.onnx import ONNX_NAME, write_onnx
from student.model.student import Heads
from teacher_cache.errors import RunError

WAIT_SECONDS = 200
LIBRARIES = {"openvino": "openvino", "onnx": "onnxruntime"}


@pytest.fixture
def checked(bundle: Bundle, bundle_folder: Path, pictures: dict[str, bytes], tmp_path: Path) -> Path:
    """A bundle with the check images of an export."""
    folder = tmp_path / "checked"
    shutil.copytree(bundle_folder, folder)
    pixels = torch.from_numpy(np.stack([bundle.prepare(image) for image in pictures.values()][:6]))
    save_check(folder, CheckImages(list(pictures)[:6], pixels, bundle.heads(pixels)), bundle.card.sha256)
    return folder


@pytest.mark.parametrize("name", ["torch-bfloat16", "torch-compile", "openvino", "onnx"])
def test_difference_from_torch_is_within_the_limit(bundle: Bundle, checked: Path, name: str) -> None:
    pytest.importorskip(LIBRARIES.get(name, "torch"))
    runtime = open_runtime(name, bundle, 2, prepare_runtime(name, bundle, checked))
    assert 0 <= check_difference(name, runtime, checked, 2) <= LARGEST_DIFFERENCE[name]


def test_runtime_over_the_difference_limit_is_refused(bundle: Bundle, checked: Path) -> None:
    def wrong(pixels: torch.Tensor) -> Heads:
        heads = bundle.heads(pixels)
        return replace_first(heads)

    def replace_first(heads: Heads) -> Heads:
        return Heads(heads.class_logits.roll(1, dims=1), heads.distill_logits)

    with pytest.raises(RunError) as raised:
        check_difference("onnx", wrong, checked, 1)
    assert_facts(raised.value, "onnx", checked, "0.0001", "--runtime torch")
    with pytest.raises(RunError) as raised:
        check_difference("onnx", bundle.heads, checked / "nowhere", 1)
    assert_facts(raised.value, checked / "nowhere" / "check.safetensors")
    with pytest.raises(RunError) as raised:
        open_runtime("tensorrt", bundle, 1)
    assert_facts(raised.value, "tensorrt", *RUNTIMES)


@pytest.fixture
def with_onnx(bundle: Bundle, checked: Path) -> Path:
    """A bundle with its own model.onnx."""
    pytest.importorskip("onnx")
    write_onnx(checked, bundle, load_check(checked))
    return checked


def without_onnxscript(folder: Path) -> None:
    sys.modules["onnxscript"] = None  # type: ignore[assignment]  # importing it raises ImportError
    bundle = open_bundle(folder, torch.device("cpu"))
    try:
        model = prepare_runtime("onnx", bundle, folder)
    except RunError as error:
        (folder / "error").write_text(str(error))
        return
    runtime = open_runtime("onnx", bundle, 2, model)
    (folder / "difference").write_text(str(check_difference("onnx", runtime, folder, 2)))


def test_the_bundles_own_onnx_file_is_used_and_nothing_is_exported(bundle: Bundle, with_onnx: Path) -> None:
    assert prepare_runtime("onnx", bundle, with_onnx) == (with_onnx / ONNX_NAME).read_bytes()
    assert exit_code_of(without_onnxscript, with_onnx) == 0
    assert 0 <= float((with_onnx / "difference").read_text()) <= LARGEST_DIFFERENCE["onnx"]

    (with_onnx / ONNX_NAME).unlink()
    assert exit_code_of(without_onnxscript, with_onnx) == 0
    assert_facts((with_onnx / "error").read_text(), "onnx", "onnxscript", "limbeck[onnx]")


def test_an_onnx_file_of_other_weights_is_refused(
    command: Callable[..., subprocess.Popen[str]], new_bundle: Callable[[Path, int], Path], with_onnx: Path
) -> None:
    other = new_bundle(with_onnx.parent / "other", 8)
    shutil.copy(with_onnx / "check.safetensors", other)
    shutil.copy(with_onnx / ONNX_NAME, other)
    process = command("serve", other, "--runtime", "onnx", "--port", 0, "--device", "cpu")
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, len(errors.splitlines())) == (2, 1), errors
    assert_facts(errors, other / ONNX_NAME, "sha256", "--onnx")


def test_an_onnx_file_that_only_states_the_right_weights_is_refused(
    new_bundle: Callable[[Path, int], Path], with_onnx: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    other = new_bundle(with_onnx.parent / "other", 8)
    bundle = open_bundle(other, torch.device("cpu"))
    model = onnx.load(with_onnx / ONNX_NAME)
    onnx.helper.set_model_props(model, {"sha256": bundle.card.sha256})
    onnx.save(model, other / ONNX_NAME)
    check = load_check(with_onnx)
    save_check(other, replace(check, heads=bundle.heads(check.pixels)), bundle.card.sha256)
    runtime = open_runtime("onnx", bundle, 2, prepare_runtime("onnx", bundle, other))
    with pytest.raises(RunError) as raised:
        check_difference("onnx", runtime, other, 2)
    assert_facts(raised.value, "onnx", other, "--runtime torch")


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_onnx_file_is_reported_with_its_path(bundle: Bundle, with_onnx: Path, cut: int) -> None:
    path = with_onnx / ONNX_NAME
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RunError, match=re.escape(str(path))):
        prepare_runtime("onnx", bundle, with_onnx)


@pytest.mark.parametrize("name", LIBRARIES)
def test_served_runtime_matches_torch_or_exits_with_a_one_line_error(
    start: Callable[..., Any],
    command: Callable[..., subprocess.Popen[str]],
    bundle: Bundle,
    checked: Path,
    pictures: dict[str, bytes],
    name: str,
) -> None:
    pytest.importorskip(LIBRARIES[name])
    options = ("--runtime", name, "--workers", 1, "--batch", 2)
    shutil.copytree(checked, other := checked.parent / "other")
    check = load_check(checked)
    wrong = Heads(check.heads.class_logits.roll(1, dims=1), check.heads.distill_logits)
    save_check(other, replace(check, heads=wrong), "0")
    refused = command("serve", other, *options, "--port", 0, "--device", "cpu")
    running = start(checked, *options)

    (model,) = httpx.get(f"{running.url}/v1/models").json()
    assert model["runtime"] == name
    assert 0 <= model["difference"] <= LARGEST_DIFFERENCE[name]
    for image in (pictures["jpeg"], pictures["png"]):
        reply = httpx.post(f"{running.url}/v1/classify", content=image, timeout=60).json()
        found = {one["label"]: one["probability"] for one in reply["images"][0]["top_k"]}
        expected = bundle.predict(torch.from_numpy(bundle.prepare(image))[None]).fused[0].tolist()
        for label, value in zip(bundle.card.classes, expected, strict=True):
            assert found[label] == pytest.approx(value, abs=LARGEST_DIFFERENCE[name])
    running.process.terminate()
    assert running.process.communicate(timeout=WAIT_SECONDS)[1] == ""

    _, errors = refused.communicate(timeout=WAIT_SECONDS)
    assert (refused.returncode, len(errors.splitlines())) == (2, 1), errors
    assert_facts(errors, name, other, f"{LARGEST_DIFFERENCE[name]:g}", "--runtime torch")
