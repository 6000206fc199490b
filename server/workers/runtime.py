"""What computes the heads of prepared pixels, by name, and how far each may be from torch in float32."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from student.bundle.bundle import Bundle
from student.bundle.check_images import CHECK_NAME, load_check
from student.model.student import FUSIONS, Heads, fuse
from teacher_cache.errors import RunError

Runtime = Callable[[Tensor], Heads]
"""(B, S, S, 3) uint8, prepared, to two (B, C) float32 on the CPU."""

LARGEST_DIFFERENCE = {
    "torch": 0.0,
    "torch-compile": 1e-4,
    "torch-bfloat16": 5e-2,
    "openvino": 1e-4,
    "openvino-bfloat16": 5e-2,
    "onnx": 1e-4,
}
"""Of any probability, by any fusion, on the check images, from torch in float32."""

RUNTIMES = tuple(LARGEST_DIFFERENCE)


def open_runtime(name: str, bundle: Bundle, batch: int) -> Runtime:
    """The runtime of that name for a bundle, whose input is (batch, S, S, 3), or fewer where memory runs out.

    Raises RunError for an unknown name, or one whose library is not installed.
    """
    if name not in RUNTIMES:
        raise RunError(f"runtime '{name}' is unknown; use one of {', '.join(RUNTIMES)}")
    library, _, kind = name.partition("-")
    try:
        if library == "openvino":
            return _openvino(bundle, batch, "bf16" if kind else "f32")
        if library == "onnx":
            return _onnx(bundle, batch)
    except ImportError as error:
        raise RunError(f"runtime '{name}' needs '{error.name}'; install limbeck[{library}]") from None
    return _torch(bundle, kind)


def check_difference(name: str, runtime: Runtime, folder: Path, batch: int) -> float:
    """The largest difference of a probability from torch float32's on the bundle's own check images.

    Raises RunError where it is more than this runtime may have, or where the bundle has no sound check images.
    """
    if name == "torch":
        if (folder / CHECK_NAME).exists():
            load_check(folder)  # that it is sound
        return 0.0
    check = load_check(folder)
    found, expected = _in_batches(runtime, check.pixels, batch), check.heads
    largest = max(float((fuse(found, how) - fuse(expected, how)).abs().max()) for how in FUSIONS)
    limit = LARGEST_DIFFERENCE[name]
    if not largest <= limit:
        raise RunError(
            f"runtime '{name}' differs from torch float32 by up to {largest:.2g} in a probability on the check "
            f"images of '{folder}', more than {limit:g}; use --runtime torch"
        )
    return largest


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


class _Whole(nn.Module):
    """A student as other runtimes take it: from prepared pixels to a plain pair."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.student = bundle.student

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.student(pixels.permute(0, 3, 1, 2))
        return heads.class_logits, heads.distill_logits


def _example(bundle: Bundle, batch: int) -> Tensor:
    size = bundle.card.eval.size
    return torch.zeros(batch, size, size, 3, dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing remarks on each branch of a network; what it gets wrong, the check images show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _openvino(bundle: Bundle, batch: int, precision: str) -> Runtime:
    import openvino

    example = _example(bundle, batch)
    shape = (batch if batch == 1 else -1, *example.shape[1:])  # any number, so that a batch can be halved
    with torch.no_grad(), _quiet():
        model = openvino.convert_model(_Whole(bundle).eval(), example_input=example, input=[shape])
    options = {
        "INFERENCE_PRECISION_HINT": precision,  # unset, it silently computes in bfloat16 where the CPU can
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(pixels: Tensor) -> Heads:
        outputs = request.infer([pixels.numpy()])
        return Heads(*(torch.from_numpy(np.array(outputs[place], np.float32)) for place in (0, 1)))

    return run


def _onnx(bundle: Bundle, batch: int) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            _Whole(bundle).eval(),
            (_example(bundle, batch),),
            path,
            input_names=["pixels"],
            dynamic_axes={"pixels": {0: "batch"}} if batch > 1 else None,  # so that a batch can be halved
            dynamo=False,
            opset_version=17,
        )
        providers = ["CUDAExecutionProvider"] if bundle.device.type == "cuda" else ["CPUExecutionProvider"]
        session: Any = onnxruntime.InferenceSession(path, options, providers=providers)

    def run(pixels: Tensor) -> Heads:
        found = session.run(None, {"pixels": pixels.numpy()})
        return Heads(*(torch.from_numpy(np.asarray(one, np.float32)) for one in found))

    return run
