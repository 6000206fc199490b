"""model.onnx: a bundle's network for other runtimes, normalisation included, held against torch as it is made.

    pixels          (batch, S, S, 3) uint8    prepared images, as in check.safetensors; any batch
    class_logits    (batch, C) float32
    distill_logits  (batch, C) float32        of a network with one head, class_logits once more

Its metadata: sha256 (of the weights), difference (the largest from torch's logits, over the check images).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from student.bundle.bundle import Bundle
from student.bundle.check_images import Check
from student.model.student import Student
from teacher_cache.errors import RunError

ONNX_NAME = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = ("class_logits", "distill_logits")
LARGEST_DIFFERENCE = 1e-3
"""Of a logit, relative to the largest logit where that is beyond one: float32 rounding is a hundredth of it."""


class _FromBytes(nn.Module):
    """Pixels (B, S, S, 3) uint8 to two outputs that are two tensors even for one head."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self._student = student

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        heads = self._student(pixels.permute(0, 3, 1, 2))
        second = heads.distill_logits if self._student.two_headed else heads.class_logits.clone()
        return heads.class_logits, second


def require_onnx() -> None:
    """Raises RunError with the command that installs what is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise RunError(f"--onnx needs {', '.join(missing)}; install with: pip install 'limbeck[onnx]'")


def write_onnx(folder: Path, bundle: Bundle, check: Check) -> float:
    """Write model.onnx into a bundle's folder; returns the largest difference from torch's logits.

    Raises RunError where ONNX Runtime's answers to the check images differ by more than rounding.
    """
    import onnx

    path, size = folder / ONNX_NAME, bundle.card.eval.size
    with _quiet():
        torch.onnx.export(
            _FromBytes(bundle.student).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            path,
            input_names=["pixels"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    difference = compare_with_torch(path, check)
    model = onnx.load(path)
    facts = {"sha256": bundle.card.sha256, "difference": f"{difference:.3e}"}
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
    return difference


def compare_with_torch(path: Path, check: Check) -> float:
    """The largest difference from torch's logits, all check images at once and each alone.

    Raises RunError where it is more than rounding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = check.pixels.numpy()
    whole = session.run(OUTPUTS, {"pixels": pixels})
    alone = [session.run(OUTPUTS, {"pixels": image[None]}) for image in pixels]
    joined = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
    wanted = [logits.numpy() for logits in check.heads]
    difference = max(
        float(np.abs(told - torchs).max())
        for answers in (whole, joined)
        for told, torchs in zip(answers, wanted, strict=True)
    )
    most = LARGEST_DIFFERENCE * max(1.0, *(float(np.abs(logits).max()) for logits in wanted))
    if not difference <= most:
        raise RunError(
            f"'{path.name}' differs from torch by {difference:.1e} in a logit, and {most:.0e} is rounding; "
            "export without --onnx"
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of its own inside; what a user must know is said by the check that follows."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
