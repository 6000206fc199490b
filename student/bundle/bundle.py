"""A bundle is one folder with all that serving needs; here it is opened, and asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from student.model.student import FUSIONS, Heads, Student, fuse
from teacher_cache.errors import RecipeError
from teacher_cache.models.card import Card
from teacher_cache.models.run_folder import FINAL_EMA, finished
from teacher_cache.models.weights import load_network
from teacher_cache.views.decode import Pixels
from teacher_cache.views.eval_transform import decode_for_eval


@dataclass(frozen=True)
class HeadProbabilities:
    """Probabilities (B, C) float32 by head; `fused` is the answer, by the fusion that was asked for."""

    class_: Tensor
    distill: Tensor
    fused: Tensor


@dataclass(frozen=True)
class Bundle:
    """A network ready to answer: its card and the student in evaluation mode."""

    card: Card
    student: Student
    device: torch.device

    def prepare(self, image: bytes) -> Pixels:
        """Encoded image bytes to the (S, S, 3) uint8 the network sees. Raises ImageError."""
        spec = self.card.eval
        return decode_for_eval(image, spec.size, spec.crop, spec.interpolation)

    def prepare_all(self, images: Sequence[bytes]) -> Tensor:
        """As `prepare`, for several: (B, S, S, 3) uint8."""
        return torch.stack([torch.from_numpy(self.prepare(image)) for image in images])

    @torch.inference_mode()
    def heads(self, pixels: Tensor) -> Heads:
        """pixels: (B, S, S, 3) uint8, prepared."""
        heads: Heads = self.student(pixels.to(self.device).permute(0, 3, 1, 2))
        return Heads(heads.class_logits.float().cpu(), heads.distill_logits.float().cpu())

    def predict(self, pixels: Tensor, fusion: str = "") -> HeadProbabilities:
        """pixels: (B, S, S, 3) uint8, prepared. fusion: by name; "" is the card's own."""
        heads = self.heads(pixels)
        return HeadProbabilities(
            fuse(heads, "class"), fuse(heads, "distill"), fuse(heads, fusion or self.card.fusion)
        )


def open_bundle(folder: Path, device: torch.device) -> Bundle:
    """Open a bundle, or a run that is finished. Raises RunError with what is wrong and what to do."""
    card, network = load_network(finished(folder))
    student = Student(network, card.network.mean, card.network.std).eval().to(device)
    return Bundle(card, student, device)


def open_weights(folder: Path, device: torch.device) -> dict[str, Bundle]:
    """The networks of a bundle or a finished run: "raw", and "ema" where the run kept a mean of its weights."""
    bundles = {"raw": open_bundle(folder, device)}
    if (folder / FINAL_EMA).exists():
        bundles["ema"] = open_bundle(folder / FINAL_EMA, device)
    return bundles


@contextmanager
def one_thread() -> Iterator[None]:
    """As the server computes: the number of threads can change the last bits of a convolution."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_fusion(card: Card, fusion: str) -> str:
    """The fusion asked for, or the card's where it is ""; raises RecipeError where the card cannot give it."""
    if fusion and fusion not in FUSIONS:
        raise RecipeError(f"fusion '{fusion}' is unknown; use one of {', '.join(FUSIONS)}")
    if fusion not in ("", "class") and "distill" not in card.heads:
        raise RecipeError(
            f"fusion '{fusion}' needs a trained distillation head; this model has the class head only"
        )
    return fusion or card.fusion
