"""The runtimes that compute the heads of prepared pixels, and their limits of difference from torch in float32."""

import difflib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from student.bundle.bundle import Bundle
from student.bundle.check_images import CHECK_NAME, load_check
from student.bundle.onnx import ONNX_NAME, OUTPUTS, PixelsToLogits, export_onnx
from student.model.student import FUSIONS, Heads, fuse
from teacher_cache.errors import RunError

Runtime = Callable[[Tensor], Heads]
"""(B, S, S, 3) uint8 prepared pixels to two (B, C) float32 logits on the CPU."""

LARGEST_DIFFERENCE = {
    "torch": 0.0,
    "torch-compile": 1e-4,
    "torch-bfloat16": 5e-2,
    "openvino": 1e-4,
    "openvino-bfloat16": 5e-2,
    "onnx": 1e-4,
}
"""Largest accepted difference of a probability from torch in float32, on the check images, for all fusions."""

RUNTIMES = tuple(LARGEST_DIFFERENCE)


def prepare_runtime(name: str, bundle: Bundle, folder: Path) -> bytes:
    """Do once, before workers are forked, what each of them would repeat; returns the model for ONNX Runtime.

    folder: the bundle's. The model is its model.onnx, or an export of the bundle without that file; b"" for other
    runtimes. Raises RunError if the file belongs to other weights, or a package is not installed.
    """
    if name != "onnx":
        return b""
    path = folder / ONNX_NAME
    try:
        return _checked(path, bundle) if path.exists() else export_onnx(bundle).SerializeToString()
    except ImportError as error:
        raise _not_installed(name, error) from None


def open_runtime(name: str, bundle: Bundle, batch: int, model: bytes = b"") -> Runtime:
    """The runtime `name` for a bundle. Its input is (batch, S, S, 3), or smaller after an out-of-memory error.

    model: from `prepare_runtime`. Raises RunError for an unknown name, or if its library is not installed.
    """
    if name not in RUNTIMES:
        near = "".join(f"did you mean '{one}'? " for one in difflib.get_close_matches(name, RUNTIMES, n=1))
        raise RunError(f"runtime '{name}' is unknown; {near}use one of {', '.join(RUNTIMES)}")
    library, _, kind = name.partition("-")
    try:
        if library == "openvino":
            return _openvino(bundle, batch, "bf16" if kind else "f32")
        if library == "onnx":
            return _onnx(bundle, model)
    except ImportError as error:
        raise _not_installed(name, error) from None
    return _torch(bundle, kind)


def check_difference(name: str, runtime: Runtime, folder: Path, batch: int) -> float:
    """The largest difference of a probability from torch in float32, on the bundle's check images.

    Raises RunError if it is above the runtime's limit, or the check images are missing or damaged.
    """
    if name == "torch":
        if (folder / CHECK_NAME).exists():
            load_check(folder)  # raises if it is damaged
        return 0.0
    check = load_check(folder)
    found, expected = _in_batches(runtime, check.pixels, batch), check.heads
    largest = max(float((fuse(found, fusion) - fuse(expected, fusion)).abs().max()) for fusion in FUSIONS)
    limit = LARGEST_DIFFERENCE[name]
    if not largest <= limit:
        raise RunError(
            f"runtime '{name}' differs from torch float32 by up to {largest:.2g} in a probability on the check "
            f"images of '{folder}', more than {limit:g}; use --runtime torch"
        )
    return largest


def _not_installed(name: str, error: ImportError) -> RunError:
    return RunError(f"runtime '{name}' needs '{error.name}'; install limbeck[{name.partition('-')[0]}]")


def _in_batches(runtime: Runtime, pixels: Tensor, batch: int) -> Heads:
    parts = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        blank = torch.zeros(batch - len(part), *part.shape[1:], dtype=torch.uint8)
        heads = runtime(torch.cat([part, blank]))
        parts.append(Heads(heads.class_logits[: len(part)], heads.distill_logits[: len(part)]))
    return Heads(torch.cat([p.class_logits for p in parts]), torch.cat([p.distill_logits for p in parts]))


def _torch(bundle: Bundle, kind: str) -> Runtime:
    compiled = torch.compile(bundle.student) if kind == "compile" else bundle.student
    device = bundle.device.type

    @torch.inference_mode()
    def run(pixels: Tensor) -> Heads:
        with torch.autocast(device, torch.bfloat16) if kind == "bfloat16" else nullcontext():
            heads = compiled(pixels.to(bundle.device).permute(0, 3, 1, 2))
        return Heads(heads.class_logits.float().cpu(), heads.distill_logits.float().cpu())

    return run


def _openvino(bundle: Bundle, batch: int, precision: str) -> Runtime:
    import openvino

    size = bundle.card.eval.size
    example = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    shape = (batch if batch == 1 else -1, *example.shape[1:])  # -1 is any number, so a batch can be halved
    network = PixelsToLogits(bundle.student).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns at each branch; the check images find real faults
        model = openvino.convert_model(network, example_input=example, input=[shape])
    options = {
        "INFERENCE_PRECISION_HINT": precision,  # the default is bfloat16 on CPUs that have it
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(pixels: Tensor) -> Heads:
        outputs = request.infer([pixels.numpy()])
        return Heads(*(torch.from_numpy(np.array(outputs[head], np.float32)) for head in (0, 1)))

    return run


def _checked(path: Path, bundle: Bundle) -> bytes:
    """The bytes of a model.onnx. Raises RunError if it is damaged or states the sha256 of other weights.

    What it computes is compared with the check images later, by `check_difference`.
    """
    model = path.read_bytes()
    try:
        sha256 = _onnx_session(model).get_modelmeta().custom_metadata_map.get("sha256", bundle.card.sha256)
    except ImportError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"'{path}' cannot be read ({reason}); export the run again with --onnx") from None
    if sha256 != bundle.card.sha256:
        raise RunError(
            f"'{path}' was exported from weights with sha256 {sha256:.8}, the bundle has {bundle.card.sha256:.8}; "
            "remove the file, or export the run again with --onnx"
        )
    return model


def _onnx(bundle: Bundle, model: bytes) -> Runtime:
    session = _onnx_session(model, "CUDA" if bundle.device.type == "cuda" else "CPU")

    def run(pixels: Tensor) -> Heads:
        outputs = session.run(OUTPUTS, {"pixels": pixels.numpy()})
        return Heads(*(torch.from_numpy(np.asarray(logits, np.float32)) for logits in outputs))

    return run


def _onnx_session(model: bytes, device: str = "CPU") -> Any:
    """An onnxruntime.InferenceSession of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=[f"{device}ExecutionProvider"])
