"""The convnet that judges: pixels to logits, in evaluation mode, once."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from teacher_cache.errors import RecipeError, RunError
from teacher_cache.network import Colour, Plain, check_name, load_network, normalise, weights_sha256
from teacher_cache.recipe import TeacherSpec

FINAL = "final"
"""The folder inside a run that holds the finished network."""


class Teacher(nn.Module):
    """A timm classifier with its own mean and std.

    Called with pixels (B, 3, H, W), uint8 or float in 0..255 (mixed views), it returns logits (B, C) float32.
    """

    def __init__(self, network: nn.Module, name: str, classes: int, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.network, self.name, self.classes, self.mean, self.std = network.eval(), name, classes, mean, std

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(normalise(pixels.float(), self.mean, self.std))
        return logits.float()

    def identity(self) -> Plain:
        """What a cache remembers of its teacher."""
        return {
            "model": self.name,
            "sha256": weights_sha256(self.network.state_dict()),
            "classes": self.classes,
            "dtype": "float32",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_teacher(spec: TeacherSpec, classes: int) -> Teacher:
    """The recipe's teacher: a finished run of `limbeck train`, or a timm model with its weights.

    Raises RunError for an unfinished or damaged run, RecipeError where the classes do not fit.
    """
    teacher = _from_run(Path(spec.run)) if spec.run else _from_timm(spec, classes)
    if teacher.classes != classes:
        raise RecipeError(f"teacher '{teacher.name}' knows {teacher.classes} classes, the shards have {classes}")
    return teacher


def _from_run(run: Path) -> Teacher:
    folder = run / FINAL if (run / FINAL).exists() else run
    if not (folder / "card.json").exists():
        raise RunError(f"teacher.run '{run}' holds no finished network; finish it with limbeck train")
    card, network = load_network(folder)
    if "distill" in card.heads:
        raise RecipeError(f"teacher.run '{run}' is a two-headed student; a teacher has one head")
    return Teacher(network, card.network.name, len(card.classes), card.network.mean, card.network.std)


def _from_timm(spec: TeacherSpec, classes: int) -> Teacher:
    check_name(spec.model)
    local = spec.weights != "pretrained"
    if local and not Path(spec.weights).is_file():
        raise RecipeError(f"teacher.weights '{spec.weights}' is no file; give \"pretrained\" or a checkpoint")
    try:
        if local:
            network = timm.create_model(spec.model, num_classes=classes, checkpoint_path=spec.weights)
        else:
            network = timm.create_model(spec.model, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"teacher '{spec.model}' with weights '{spec.weights}' cannot be had: {reason}"
        ) from None
    settings: Any = network.pretrained_cfg
    outputs: Any = network.num_classes
    return Teacher(network, spec.model, outputs, tuple(settings["mean"]), tuple(settings["std"]))
