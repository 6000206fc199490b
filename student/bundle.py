"""A bundle is one folder with all that serving needs; here it is made from a run, opened, and asked."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from student.model import FUSIONS, Heads, Student, fuse
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.network import Card, load_card, load_network, load_weights, save_network
from teacher_cache.pixels import Pixels, prepare
from teacher_cache.teacher import FINAL


@dataclass(frozen=True)
class Prediction:
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
        return prepare(image, spec.size, spec.crop, spec.interpolation)

    @torch.inference_mode()
    def heads(self, pixels: Tensor) -> Heads:
        """pixels: (B, S, S, 3) uint8, prepared."""
        heads: Heads = self.student(pixels.to(self.device).permute(0, 3, 1, 2))
        return Heads(heads.class_logits.float().cpu(), heads.distill_logits.float().cpu())

    def predict(self, pixels: Tensor, fusion: str = "") -> Prediction:
        """pixels: (B, S, S, 3) uint8, prepared. fusion: by name; "" is the card's own."""
        heads = self.heads(pixels)
        return Prediction(fuse(heads, "class"), fuse(heads, "distill"), fuse(heads, fusion or self.card.fusion))


def open_bundle(folder: Path, device: torch.device) -> Bundle:
    """Open a bundle, or a run that is finished. Raises RunError with what is wrong and what to do."""
    card, network = load_network(finished(folder))
    student = Student(network, card.network.mean, card.network.std).eval().to(device)
    return Bundle(card, student, device)


def finished(folder: Path) -> Path:
    """The folder that holds the network: a bundle itself, or what a finished run left in it."""
    if (folder / "recipe.json").exists() and not (folder / FINAL).exists():
        raise RunError(f"run '{folder}' is not finished; finish it with: limbeck train RECIPE")
    return folder / FINAL if (folder / FINAL).exists() else folder


def export(run: Path, out: Path, fusion: str = "") -> Card:
    """Write a finished run as a bundle. fusion: how its heads answer by default; "" keeps the run's choice."""
    source = finished(run)
    card = load_card(source)
    card = card.model_copy(update={"fusion": check_fusion(card, fusion)})
    save_network(out, card, load_weights(source, card))
    return card


def check_fusion(card: Card, fusion: str) -> str:
    """The fusion asked for, or the card's where it is ""; raises RecipeError where the card cannot give it."""
    if fusion and fusion not in FUSIONS:
        raise RecipeError(f"fusion '{fusion}' is unknown; use one of {', '.join(FUSIONS)}")
    if fusion not in ("", "class") and "distill" not in card.heads:
        raise RecipeError(
            f"fusion '{fusion}' needs a trained distillation head; this model has the class head only"
        )
    return fusion or card.fusion
