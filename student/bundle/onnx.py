"""model.onnx: a bundle's network for other runtimes, normalization included.

    pixels          (batch, S, S, 3) uint8    prepared images, as in check.safetensors; any batch size
    class_logits    (batch, C) float32
    distill_logits  (batch, C) float32        a copy of class_logits if the network has one head

The metadata of the file has two entries: sha256 (of the weights) and difference (the largest difference from
torch's logits on the check images).
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from student.bundle.bundle import Bundle
from student.bundle.check_images import CheckImages
from student.model.student import Student
from teacher_cache.errors import RunError

ONNX_NAME = "model.onnx"
REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = ("class_logits", "distill_logits")
LARGEST_DIFFERENCE = 1e-3
"""Largest accepted difference of a logit from torch's, relative to the largest logit if that is above 1.

Float32 rounding causes about a hundredth of it.
"""


class PixelsToLogits(nn.Module):
    """A student as other runtimes take it: (B, S, S, 3) uint8 to two separate (B, C) float32 tensors."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self._student = student

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        heads = self._student(pixels.permute(0, 3, 1, 2))
        second = heads.distill_logits if self._student.two_headed else heads.class_logits.clone()
        return heads.class_logits, second


def require_onnx() -> None:
    """Raise RunError with the command that installs the missing packages, if there are any."""
    if missing := [name for name in REQUIRED_PACKAGES if find_spec(name) is None]:
        raise RunError(f"--onnx needs {', '.join(missing)}; install with: pip install 'limbeck[onnx]'")


def write_onnx(folder: Path, bundle: Bundle, check: CheckImages) -> float:
    """Write model.onnx into a bundle's folder; returns the largest difference from torch's logits.

    Raises RunError if ONNX Runtime's logits on the check images differ by more than rounding.
    """
    import onnx

    path, model = folder / ONNX_NAME, export_onnx(bundle)
    path.write_bytes(model.SerializeToString())
    difference = compare_with_torch(path, check)
    onnx.helper.set_model_props(model, {"sha256": bundle.card.sha256, "difference": f"{difference:.3e}"})
    path.write_bytes(model.SerializeToString())
    return difference


def export_onnx(bundle: Bundle) -> Any:
    """The network of a bundle on the CPU as an onnx.ModelProto, without metadata. Raises ImportError."""
    size = bundle.card.eval.size
    with _quiet():
        program = torch.onnx.export(
            PixelsToLogits(bundle.student).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            input_names=["pixels"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _clear_metadata(model)
    return model


def compare_with_torch(path: Path, check: CheckImages) -> float:
    """The largest difference from torch's logits, for all check images at once and for each alone.

    Raises RunError if it is more than rounding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = check.pixels.numpy()
    together = session.run(OUTPUTS, {"pixels": pixels})
    single = [session.run(OUTPUTS, {"pixels": image[None]}) for image in pixels]
    one_by_one = [np.concatenate(parts) for parts in zip(*single, strict=True)]
    expected = [logits.numpy() for logits in check.heads]
    difference = max(
        float(np.abs(logits - torch_logits).max())
        for outputs in (together, one_by_one)
        for logits, torch_logits in zip(outputs, expected, strict=True)
    )
    limit = LARGEST_DIFFERENCE * max(1.0, *(float(np.abs(logits).max()) for logits in expected))
    if not difference <= limit:
        raise RunError(
            f"'{path.name}' differs from torch by {difference:.1e} in a logit, more than {limit:.0e}; "
            "export without --onnx"
        )
    return difference


def _clear_metadata(model: Any) -> None:
    """Remove the exporter's notes: stack traces with local paths, most of the bytes of a small file."""
    import onnx

    messages: list[Any] = [model]
    while messages:
        message = messages.pop()
        for field, value in message.ListFields():
            if field.name in ("metadata_props", "doc_string"):
                message.ClearField(field.name)
            elif field.message_type is not None and field.message_type is not onnx.TensorProto.DESCRIPTOR:
                messages += value if isinstance(value, Iterable) else [value]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its messages concern its internals, and the check that follows finds real faults."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
