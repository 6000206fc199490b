"""The convnet that judges: pixels to logits, in evaluation mode, once."""

import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from teacher_cache.config import Plain
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.models.network import check_name, normalize
from teacher_cache.models.run_folder import network_folder
from teacher_cache.models.spec import Colour, TeacherSpec
from teacher_cache.models.weights import load_network, weights_sha256


class Teacher(nn.Module):
    """A timm classifier with its own mean and std.

    Called with pixels (B, 3, H, W), uint8 or float in 0..255 (mixed views), it returns logits (B, C) float32.
    """

    def __init__(
        self, network: nn.Module, name: str, classes: int, mean: Colour, std: Colour, dtype: str = "float32"
    ) -> None:
        super().__init__()
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.name, self.classes, self.mean, self.std, self.dtype = name, classes, mean, std, dtype

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            logits: Tensor = self.network(normalize(pixels.float(), self.mean, self.std))
        return logits.float()

    def identity(self, size: int | None = None) -> Plain:
        """The teacher's fields in a manifest. size: of the views that it labels, in pixels; None leaves it out."""
        fields: Plain = {
            "model": self.name,
            "sha256": weights_sha256(self.network.state_dict()),
            "classes": self.classes,
            "dtype": self.dtype,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return fields if size is None else fields | {"size": size}


def load_teacher(spec: TeacherSpec, classes: tuple[str, ...], size: int) -> Teacher:
    """The recipe's teacher: a finished run of `limbeck train`, or a timm model with its weights.

    classes: names by label, as the shards have them. size: of the views, in pixels.
    Raises RunError for an unfinished or damaged run, RecipeError where classes or views do not fit.
    """
    teacher = _from_run(spec, classes) if spec.run else _from_timm(spec, len(classes))
    if teacher.classes != len(classes):
        raise RecipeError(
            f"teacher '{teacher.name}' knows {teacher.classes} classes, the shards have {len(classes)}; "
            "give a teacher of these classes"
        )
    check_size(teacher, "teacher", teacher.name, "views.size", size)
    return teacher


@torch.no_grad()
def check_size(network: nn.Module, role: str, name: str, key: str, size: int) -> None:
    """Raises RecipeError where a network cannot take (1, 3, size, size) images, the `key` of a recipe.

    Patches that do not fill the image are such a case: timm would leave its right and lower edge out in silence.
    """
    if size % (patch := patch_of(network)):
        raise RecipeError(
            f"{role} '{name}' cannot take images of {key} = {size}: its patches are {patch} pixels wide; "
            f"give a multiple of {patch}"
        )
    device = next(network.parameters()).device
    try:
        network.eval()(torch.zeros(1, 3, size, size, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RecipeError(
            f"{role} '{name}' cannot take images of {key} = {size} ({reason}); make the sizes fit, e.g. img_size"
        ) from None


def patch_of(network: nn.Module) -> int:
    """Pixels a side of a patch; 1 of a convnet, and of what pads its images or lets its patches overlap."""
    embed = next((module for module in network.modules() if isinstance(module, PatchEmbed)), None)
    return 1 if embed is None or embed.dynamic_img_pad else math.lcm(*embed.patch_size)


def _from_run(spec: TeacherSpec, classes: tuple[str, ...]) -> Teacher:
    run = Path(spec.run)
    folder = network_folder(run)
    if not (folder / "card.json").exists():
        if not run.exists():
            raise RunError(f"teacher.run '{run}' is not there; give a finished run's folder, or train one first")
        raise RunError(f"teacher.run '{run}' holds no finished network; finish it with limbeck train")
    card, network = load_network(folder)
    if "distill" in card.heads:
        raise RecipeError(f"teacher.run '{run}' is a two-headed student; a teacher has one head")
    if apart := [pair for pair in zip(card.classes, classes, strict=False) if pair[0] != pair[1]]:
        raise RecipeError(
            f"teacher.run '{run}' calls class {card.classes.index(apart[0][0])} '{apart[0][0]}', the shards call "
            f"it '{apart[0][1]}'; train the teacher on shards of the same classes in the same order"
        )
    return Teacher(network, card.network.name, len(card.classes), card.network.mean, card.network.std, spec.dtype)


def _from_timm(spec: TeacherSpec, classes: int) -> Teacher:
    check_name(spec.model, "teacher.model")
    local = spec.weights != "pretrained"
    if local and not Path(spec.weights).is_file():
        raise RecipeError(f"teacher.weights '{spec.weights}' is no file; give \"pretrained\" or a checkpoint")
    try:
        if local:
            network = timm.create_model(spec.model, num_classes=classes, checkpoint_path=spec.weights)
        else:
            network = timm.create_model(spec.model, pretrained=True)
    except Exception as error:  # a file, or a hub, may answer with anything
        reason = " ".join(str(error).split())[:200]
        named = f"teacher '{spec.model}' with weights '{spec.weights}'"
        raise RecipeError(f"{named} cannot be had: {reason}") from None
    settings: Any = network.pretrained_cfg
    outputs: Any = network.num_classes
    return Teacher(network, spec.model, outputs, tuple(settings["mean"]), tuple(settings["std"]), spec.dtype)
