"""The student: any timm network with two outputs, whose shapes never depend on a flag."""

from typing import Any, NamedTuple

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.pit import PoolingVisionTransformer
from torch import Tensor, nn

from teacher_cache.errors import RecipeError
from teacher_cache.models.network import Normalize, create_network
from teacher_cache.models.spec import Color, NetworkSpec

FUSIONS = ("softmax-sum", "logit-mean", "class", "distill")


class Heads(NamedTuple):
    """class_logits, distill_logits: (B, C) float. A network with one head returns the same logits twice."""

    class_logits: Tensor
    distill_logits: Tensor


class Student(nn.Module):
    """A timm network with its mean and std: (B, 3, H, W) pixels in 0..255, uint8 or float, to Heads.

    In timm's distilled DeiT the class token feeds one head and the distillation token the other. Both outputs are
    returned in training and in evaluation; timm itself averages them in evaluation.
    """

    def __init__(self, network: nn.Module, mean: Color, std: Color) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std
        self.normalize = Normalize(mean, std)
        self.two_headed = has_two_heads(network)

    def forward(self, pixels: Tensor) -> Heads:
        images = self.normalize(pixels.float())
        if not self.two_headed:
            logits: Tensor = self.network(images)
            return Heads(logits, logits)
        network: Any = self.network
        tokens = network.forward_features(images)
        return Heads(
            network.head(network.head_drop(tokens[:, 0])), network.head_dist(network.head_drop(tokens[:, 1]))
        )


def create_student(spec: NetworkSpec, classes: int, distill_head: bool) -> Student:
    """Create the network of a recipe. distill_head: whether the recipe trains a distillation head.

    Raises RecipeError if the network has no such head, with the name of a timm model that has one.
    """
    network = create_network(spec, classes)
    if distill_head and not has_two_heads(network):
        parts = spec.name.split("_")
        distilled_name = "_".join((*parts[:2], "distilled", *parts[2:]))
        suggestion = distilled_name if spec.name.startswith("deit_") else "deit_small_distilled_patch16_224"
        raise RecipeError(
            f"model '{spec.name}' has no distillation head; use model.name = \"{suggestion}\", or "
            'distill into the class head with loss.head = "class"'
        )
    return Student(network, spec.mean, spec.std)


def has_two_heads(network: nn.Module) -> bool:
    """Whether the network has a head on a distillation token. (timm's LeViT has two heads on one pooled token.)"""
    has_tokens = isinstance(network, VisionTransformerDistilled | PoolingVisionTransformer)
    return has_tokens and getattr(network, "head_dist", None) is not None


def fuse(heads: Heads, fusion: str) -> Tensor:
    """Combine two heads into probabilities (B, C) that sum to one. fusion: one of FUSIONS.

    "softmax-sum" averages the heads' softmax outputs (DeiT, section 4). "logit-mean" averages the logits (DeiT's
    code and timm). "class" and "distill" use one head alone. Raises RecipeError for an unknown fusion.
    """
    if fusion == "softmax-sum":
        return (heads.class_logits.softmax(dim=1) + heads.distill_logits.softmax(dim=1)) / 2
    if fusion == "logit-mean":
        return torch.softmax((heads.class_logits + heads.distill_logits) / 2, dim=1)
    if fusion == "class":
        return heads.class_logits.softmax(dim=1)
    if fusion == "distill":
        return heads.distill_logits.softmax(dim=1)
    raise RecipeError(f"fusion '{fusion}' is unknown; use one of {', '.join(FUSIONS)}")
