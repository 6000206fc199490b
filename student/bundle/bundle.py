"""Open a bundle, the folder with everything that serving needs, and predict with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from student.model.student import FUSIONS, Heads, Student, fuse
from teacher_cache.errors import RecipeError
from teacher_cache.models.card import Card
from teacher_cache.models.run_folder import has_ema, network_folder
from teacher_cache.models.weights import load_network
from teacher_cache.views.decode import Pixels
from teacher_cache.views.eval_transform import prepare


@dataclass(frozen=True)
class HeadProbabilities:
    """Probabilities (B, C) float32: of each head, and of both combined by the requested fusion."""

    class_: Tensor
    distill: Tensor
    fused: Tensor


@dataclass(frozen=True)
class Bundle:
    """A network for inference: its card and the student in evaluation mode."""

    card: Card
    student: Student
    device: torch.device

    def prepare(self, image: bytes) -> Pixels:
        """Decode, resize and crop an encoded image to (S, S, 3) uint8. Raises ImageError."""
        spec = self.card.eval
        return prepare(image, spec.size, spec.crop, spec.interpolation)

    def prepare_all(self, images: Sequence[bytes]) -> Tensor:
        """Prepare several images: (B, S, S, 3) uint8. Raises ImageError."""
        return torch.stack([torch.from_numpy(self.prepare(image)) for image in images])

    @torch.inference_mode()
    def heads(self, pixels: Tensor) -> Heads:
        """Logits on the CPU. pixels: (B, S, S, 3) uint8, prepared."""
        heads: Heads = self.student(pixels.to(self.device).permute(0, 3, 1, 2))
        return Heads(heads.class_logits.float().cpu(), heads.distill_logits.float().cpu())

    def predict(self, pixels: Tensor, fusion: str = "") -> HeadProbabilities:
        """Probabilities. pixels: (B, S, S, 3) uint8, prepared. fusion: one of FUSIONS, or "" for the card's."""
        heads = self.heads(pixels)
        return HeadProbabilities(
            fuse(heads, "class"), fuse(heads, "distill"), fuse(heads, fusion or self.card.fusion)
        )


def open_bundle(folder: Path, device: torch.device, *, ema: bool = False) -> Bundle:
    """Open a bundle or a finished run. ema: the run's moving average of its weights.

    Raises RunError with what is wrong and what to do.
    """
    card, network = load_network(network_folder(folder, ema=ema))
    student = Student(network, card.network.mean, card.network.std).eval().to(device)
    return Bundle(card, student, device)


def open_raw_and_ema(folder: Path, device: torch.device) -> dict[str, Bundle]:
    """The networks of a bundle or a finished run: "raw", and "ema" if the run has an average of its weights."""
    bundles = {"raw": open_bundle(folder, device)}
    if has_ema(folder):
        bundles["ema"] = open_bundle(folder, device, ema=True)
    return bundles


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread, as the server does. The number of threads can change a convolution's last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_fusion(card: Card, fusion: str) -> str:
    """The requested fusion, or the card's for "". Raises RecipeError if it is unknown or needs another head."""
    if fusion and fusion not in FUSIONS:
        raise RecipeError(f"fusion '{fusion}' is unknown; use one of {', '.join(FUSIONS)}")
    if fusion not in ("", "class") and "distill" not in card.heads:
        raise RecipeError(
            f"fusion '{fusion}' needs a trained distillation head, this model has only a class head; use class"
        )
    return fusion or card.fusion
