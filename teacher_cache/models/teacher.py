"""Teacher network: pixels to logits in evaluation mode."""

import math
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from teacher_cache.config import Plain
from teacher_cache.distributed.device import autocast, backend_flags
from teacher_cache.errors import RecipeError, RunError
from teacher_cache.models.network import Normalize, check_model_name
from teacher_cache.models.run_folder import network_folder
from teacher_cache.models.spec import Color, TeacherSpec
from teacher_cache.models.weights import load_network, weights_sha256


class Teacher(nn.Module):
    """timm classifier with its own mean and std.

    Input: (B, 3, H, W) pixels in 0..255, uint8 or float (mixed views). Output: (B, C) float32 logits.
    class_match: "name" if the network's class names are those of the shards, "position" if it has no names.
    cudnn_benchmark: as in `backend_flags`. pad_to: smaller batches are padded to this size; 0 for no padding.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        classes: int,
        mean: Color,
        std: Color,
        dtype: str = "float32",
        class_match: Literal["name", "position"] = "position",
    ) -> None:
        super().__init__()
        self.class_match, self.cudnn_benchmark, self.pad_to = class_match, False, 0
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.name, self.classes, self.mean, self.std, self.dtype = name, classes, mean, std, dtype
        self.normalize = Normalize(mean, std)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        images, count = self.normalize(pixels.float()), len(pixels)
        if count < self.pad_to:
            images = F.pad(images, (0, 0) * 3 + (0, self.pad_to - count))
        with backend_flags(self.dtype, self.cudnn_benchmark), autocast(pixels.device, self.dtype):
            logits: Tensor = self.network(images)
        return logits[:count].float()

    def identity(self, size: int | None = None) -> Plain:
        """Fields that identify the teacher in a cache's manifest.

        size: of the views that it labels, in pixels; None leaves this field out.
        """
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
    """The teacher of a recipe: a finished run of `limbeck train`, or a timm model.

    classes: class names of the shards, by label. size: side of the views in pixels.
    Raises RunError if the run is unfinished or damaged, RecipeError if classes or size do not match the network.
    """
    teacher = _from_run(spec, classes) if spec.run else _from_timm(spec, len(classes))
    if teacher.classes != len(classes):
        raise RecipeError(
            f"teacher '{teacher.name}' has {teacher.classes} classes, the shards have {len(classes)}; "
            "use a teacher that was trained on the shards' classes"
        )
    check_size(teacher, "teacher", teacher.name, "views.size", size)
    return teacher


@torch.no_grad()
def check_size(network: nn.Module, role: str, name: str, key: str, size: int) -> None:
    """Raise RecipeError if a network cannot process (1, 3, size, size) images.

    role, name: the network in the message, e.g. "teacher" and "resnet18". key: recipe key of the size.
    A size that is not a multiple of the patch size is an error, as timm would ignore the right and lower edges.
    """
    if size % (patch := patch_size(network)):
        raise RecipeError(
            f"{role} '{name}' cannot process images of {key} = {size}: its patches are {patch} pixels wide; "
            f"set {key} to a multiple of {patch}"
        )
    device = next(network.parameters()).device
    try:
        network.eval()(torch.zeros(1, 3, size, size, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RecipeError(
            f"{role} '{name}' cannot process images of {key} = {size} ({reason}); change {key} or img_size"
        ) from None


def patch_size(network: nn.Module) -> int:
    """Side of a patch in pixels; 1 if the network is a convnet, pads its input or has overlapping patches."""
    embed = next((module for module in network.modules() if isinstance(module, PatchEmbed)), None)
    return 1 if embed is None or embed.dynamic_img_pad else math.lcm(*embed.patch_size)


def is_convnet(network: nn.Module) -> bool:
    """Whether the network has convolutions and does not cut the image into patches."""
    modules = [type(module) for module in network.modules()]
    return nn.Conv2d in modules and not any(issubclass(module, PatchEmbed) for module in modules)


def _from_run(spec: TeacherSpec, classes: tuple[str, ...]) -> Teacher:
    run = Path(spec.run)
    try:
        card, network = load_network(network_folder(run))
    except RunError as error:
        raise RunError(f"teacher.run: {error}") from None
    if "distill" in card.heads:
        raise RecipeError(f"teacher.run '{run}' is a two-headed student; a teacher has one head")
    if differing := [pair for pair in zip(card.classes, classes, strict=False) if pair[0] != pair[1]]:
        teacher_class, shard_class = differing[0]
        raise RecipeError(
            f"teacher.run '{run}' calls class {card.classes.index(teacher_class)} '{teacher_class}', the "
            f"shards call it '{shard_class}'; train the teacher on shards of the same classes in the same order"
        )
    model = card.network
    return Teacher(network, model.name, len(card.classes), model.mean, model.std, spec.dtype, class_match="name")


def _from_timm(spec: TeacherSpec, classes: int) -> Teacher:
    check_model_name(spec.model, "teacher.model")
    local = spec.weights != "pretrained"
    if local and not Path(spec.weights).is_file():
        raise RecipeError(f"teacher.weights '{spec.weights}' is not a file; give \"pretrained\" or a checkpoint")
    try:
        if local:
            network = timm.create_model(spec.model, num_classes=classes, checkpoint_path=spec.weights)
        else:
            network = timm.create_model(spec.model, pretrained=True)
    except Exception as error:  # damaged files and failed downloads raise many classes
        reason = " ".join(str(error).split())[:200]
        teacher = f"teacher '{spec.model}' with weights '{spec.weights}'"
        raise RecipeError(f"{teacher} cannot be loaded: {reason}") from None
    config: Any = network.pretrained_cfg
    num_classes: Any = network.num_classes
    mean, std = spec.mean or tuple(config["mean"]), spec.std or tuple(config["std"])
    return Teacher(network, spec.model, num_classes, mean, std, spec.dtype)
